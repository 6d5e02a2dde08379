"""The typed configuration behind `conf/`. The docstring under a field is the one place of its key's meaning.

Plain dataclasses: nothing here imports torch, so `--help` and `--cfg job` answer at once, and nothing here knows Hydra,
so a `ModelConfig` made by hand is as good as a composed one.
"""

from dataclasses import asdict, dataclass, field
from math import isqrt
from os.path import isfile
from typing import Annotated, Any

from adaptive_span.config import layer_order, plugins, quantities
from adaptive_span.config.checks import FP32_MAX, LONG, MISSING, OneOf, Pattern, Range, check, path
from adaptive_span.config.quantities import Gpus
from adaptive_span.config.registry import ATTENTIONS, OPTIMIZERS, SCHEDULES, TRACKERS, decays
from adaptive_span.errors import UserError, check_batch, either
from adaptive_span.terminal.plain_text import without_secrets

ACTIVATIONS = ("relu", "gelu", "relu2", "swiglu")
DEVICES = ("auto", "cpu", "cuda", "mps")
FREEZES = ("none", "weights")
GRAPHS = ("auto", "off")
IDS = ("auto", "appearance", "frequency")
INITS = ("published", "small_branches")
LEVELS = ("byte", "word", "subword")
LINE_ENDS = ("auto", "eos", "plain")
NORMS = ("post", "pre")
NORM_KINDS = ("layer", "rms")
PRECISIONS = ("auto", "fp32", "bf16", "tf32")
PROTOCOLS = ("exact", "published")
SEARCHES = ("optuna",)
SOURCES = ("auto", "download", "path", "stdlib")
UNKNOWNS = ("unk", "refuse")
WANDB_MODES = ("auto", "online", "offline")

MANY = 2**63 - 1  # what 64 bits hold, for what is only counted
YEAR = 525_600  # minutes
Count = Annotated[int, Range(1, MANY)]
CountOrNone = Annotated[int, Range(0, MANY)]
Size = Annotated[int, Range(1, LONG)]
SizeOrNone = Annotated[int, Range(0, LONG)]
Probability = Annotated[float, Range(0, 1, below=True)]
Rate = Annotated[float, Range(0, 1e30, above=True)]  # beyond this, updates are not finite
Path = Annotated[str, path]
Sha256 = Annotated[str, Pattern("[0-9a-f]{64}", "64 digits of 0-9 and a-f")]
Address = Annotated[str, Pattern("https?://[^/]+/.*[^/]", "the address of a file, like https://host/text.zip")]
Name = Annotated[str, Pattern(r"\w[\w.-]{0,49}", "a name of at most 50 letters, digits, ., - and _")]
Numbering = Annotated[str, OneOf(("same",))]


@dataclass
class ModelConfig:
    """Sizes of the Transformer.

    Source: arXiv 1905.07799 (N, C, F, H, L, M, R there are `num_layers`, `hidden_size`, `ffn_size`, `num_heads`,
    `max_span`, `block_size`, `ramp`); arXiv 1907.01470 for `memory_size`; arXiv 1809.10853 for `cutoffs`; and for what
    is not theirs: arXiv 2002.04745 for `norm=pre`, 1910.07467 for `norm_kind=rms`, 2109.08668 for `relu2`, 2002.05202
    for `swiglu`, 2010.04245 for `qk_norm`, 1608.05859 for `tied_output`.
    """

    name: str
    """Name of the model. It stands in the name of the run's directory."""
    num_layers: Annotated[int, Range(1, 10_000)]
    """Number of layers. Each has attention, followed by a feed-forward unless `model.layer_order` moves it."""
    hidden_size: Size
    """Size of the hidden states. A multiple of `model.num_heads`."""
    ffn_size: SizeOrNone
    """Inner size of the feed-forward. 0: no feed-forward, attention alone."""
    num_heads: Size
    """Heads per layer. Each has a span of its own."""
    max_span: Size
    """Longest span of a head, in tokens."""
    block_size: Size
    """Tokens of each row that one step predicts."""
    adaptive_span: bool = True
    """Whether heads learn their spans. false: every head always looks at `model.max_span` tokens."""
    ramp: Size = 32
    """Tokens over which a head's soft mask falls from 1 to 0, beyond its span."""
    span_init: Annotated[float, Range(0, 1)] = 0.0
    """Span of every head at the start, as a fraction of `model.max_span`."""
    trim_cache: bool = True
    """Keep only the past hidden states that a layer's longest head reaches. false: keep `model.max_span` of them."""
    memory_size: SizeOrNone = 0
    """Persistent vectors per head, in place of the feed-forward. 0: none. Needs `model.ffn_size=0`."""
    layer_order: str | None = None
    """Order of the blocks, a letter each, as in aaafff. a is attention, f is feed-forward. sandwich: attention first,
    feed-forward last, and pairs between them. null: they alternate."""
    dropout: Probability = 0.0
    """Dropout of the attention weights and inside the feed-forward."""
    attention_dropout: Probability | None = None
    """Dropout of the attention weights alone. null: as `model.dropout`."""
    ffn_dropout: Probability | None = None
    """Dropout inside the feed-forward alone. null: as `model.dropout`."""
    embedding_dropout: Probability = 0.0
    """Dropout after the embedding and before the output layer."""
    cutoffs: list[Count] = field(default_factory=list)
    """Adaptive input and output: word ids, by falling frequency, at which a new cluster begins. Empty: one size of
    vectors for all words."""
    division: Size = 4
    """Adaptive input and output: how many times smaller the vectors of each cluster are than those before."""
    tied: bool = True
    """Whether adaptive input and output share their vectors."""
    tied_output: bool = False
    """Whether the output layer of a vocabulary without `model.cutoffs` shares the vectors of the input."""
    norm: Annotated[str, OneOf(NORMS)] = "post"
    """Where a block is normalised. post: its sum with the residual, as published. pre: its input; a last norm stands
    before the output layer."""
    norm_kind: Annotated[str, OneOf(NORM_KINDS)] = "layer"
    """Kind of the norms. layer: LayerNorm. rms: RMSNorm, without mean and bias."""
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "relu"
    """What is between the two matrices of the feed-forward. relu2: ReLU squared. swiglu: a third matrix of
    `model.ffn_size` gates what passes."""
    qk_norm: bool = False
    """Whether queries and keys are scaled to one length, whatever the hidden states are."""
    init: Annotated[str, OneOf(INITS)] = "published"
    """How weights begin. small_branches: the last matrix of each block smaller, by the root of the number of blocks."""
    attention: Annotated[str, OneOf(ATTENTIONS)] = "auto"
    """Implementation of attention. auto: the fastest that runs here. All compute the same."""

    def validate(self) -> None:
        """Check the values, and how they go together.

        Raises:
            UserError: One is not allowed.
        """
        check(self, "model.")
        if self.hidden_size % self.num_heads:
            low = [h for h in range(1, isqrt(self.hidden_size) + 1) if self.hidden_size % h == 0]
            allowed = {*low, *(self.hidden_size // h for h in low)}
            near = sorted(sorted(allowed, key=lambda h: abs(h - self.num_heads))[:3])
            raise UserError(
                f"model.num_heads={self.num_heads} does not divide model.hidden_size={self.hidden_size}; "
                f"take {either(near)}"
            )
        if self.memory_size and self.ffn_size:
            raise UserError(
                f"model.memory_size={self.memory_size} takes the place of the feed-forward, but "
                f"model.ffn_size={self.ffn_size}; set one of them to 0"
            )
        if self.activation != "relu" and not self.ffn_size:
            raise UserError(
                f"model.activation={self.activation} is that of the feed-forward, but model.ffn_size=0; leave it out"
            )
        self._check_adaptive_io()
        self.block_order()

    def _check_adaptive_io(self) -> None:
        if sorted(set(self.cutoffs)) != self.cutoffs:
            raise UserError(f"model.cutoffs={self.cutoffs} must increase")
        if self.tied_output and self.cutoffs:
            raise UserError(
                "model.tied_output=true goes with a vocabulary without model.cutoffs; of adaptive input and output "
                "model.tied=true shares the vectors"
            )
        if self.hidden_size < self.division ** len(self.cutoffs):
            raise UserError(
                f"model.division={self.division} leaves nothing of model.hidden_size={self.hidden_size} for the last "
                f"of {len(self.cutoffs) + 1} clusters; take a smaller one, or fewer model.cutoffs"
            )

    @property
    def head_size(self) -> int:
        """Return D, the size of a head's queries, keys and values."""
        return self.hidden_size // self.num_heads

    @property
    def ffn_matrices(self) -> int:
        """Return how many matrices a feed-forward has."""
        return 3 if self.activation == "swiglu" else 2

    @property
    def reads_by_frequency(self) -> bool:
        """Whether the vocabulary must be numbered by falling frequency."""
        return bool(self.cutoffs)

    def block_order(self) -> str:
        """Return a letter per block, from the input on: a for attention, f for feed-forward."""
        return layer_order.block_order(self.layer_order, self.num_layers, self.ffn_size)


@dataclass
class DataConfig:
    """Where the text comes from and how it becomes token ids (see `corpus.py`)."""

    name: Name = MISSING
    """Name of the text. It stands in the names of runs and of numbered texts."""
    level: Annotated[str, OneOf(LEVELS)] = "byte"
    """What a token is: a byte, a word between white space, or what the tokenizer of `data.tokenizer` makes of the
    text."""
    file: Path | None = None
    """A local copy of a downloadable text: raw, .zip, .gz or .xz. null: download it."""
    path: Path | None = None
    """Your own text. A folder that holds train.txt, valid.txt and test.txt, or these as .gz or .xz, or
    wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens. Or one file, raw or packed, which is split 90/5/5."""
    split: list[Count] | None = None
    """Bytes of train, valid and test, taken in this order from the start of the file. null: 90 %, 5 % and 5 %, unless
    the splits are files."""
    directory: Path = "data"
    """Folder where downloads and numbered texts are kept."""
    urls: list[Address] = field(default_factory=list)
    """Addresses of the download, tried in this order."""
    size: Count | None = None
    """Size of the download, in bytes. null: not checked."""
    sha256: Sha256 | None = None
    """SHA-256 of the download. null: not checked."""
    unpacked_size: Count | None = None
    """Size of the text in the download, in bytes. null: not checked."""
    unpacked_sha256: Sha256 | None = None
    """SHA-256 of the text in the download. null: not checked."""
    symbols: str | None = None
    """All the characters that the text may consist of. null: any."""
    holds: str | None = None
    """A string that every part of the text holds. null: not checked."""
    source: Annotated[str, OneOf(SOURCES)] = "auto"
    """Where the text comes from. download: `data.urls`, or the copy `data.file`. path: `data.path`. stdlib: the sources
    of this Python's standard library. auto: path where `data.path` alone is given, else download."""
    members: list[str] = field(default_factory=list)
    """Files of the .zip, by the ends of their names: those of train, valid and test, or one. Empty: its only file."""
    ids: Annotated[str, OneOf(IDS)] = "auto"
    """How tokens are numbered. appearance: by their first one in train. frequency: words by how often train holds them,
    which `model.cutoffs` always need. auto: bytes by their value, words by appearance."""
    line_ends: Annotated[str, OneOf(LINE_ENDS)] = "auto"
    """What a line end becomes. eos: the token <eos>, also at the end of each split. plain: of bytes a byte, of words
    nothing. auto: eos of words, plain of bytes."""
    unknown: Annotated[str, OneOf(UNKNOWNS)] = "unk"
    """What becomes of words that train lacks. unk: the token <unk>. refuse: an error."""
    strip: bool = False
    """Whether to leave out the spaces at both ends of each split of bytes."""
    vocab_size: Count | None = None
    """Number of different tokens, for estimates before the text is read. null: unknown."""
    tokenizer: Path | None = None
    """The tokenizer.json of `data.level=subword`, or a folder that holds one. null: of weights that are named, their
    own."""

    def validate(self) -> None:
        """Check the values, and how they go together.

        Raises:
            UserError: One is not allowed.
        """
        check(self, "data.")
        if self.split is not None and len(self.split) != 3:
            raise UserError(f"data.split={self.split} must be three positive numbers of bytes: [train, valid, test]")
        if self.members and len(self.members) not in (1, 3):
            raise UserError(f"data.members={self.members} must be one name, or those of train, valid and test")
        if self.ids == "frequency" and self.level != "word":
            raise UserError(f"data.ids=frequency numbers words, but data.level={self.level}; take data.ids=appearance")
        if self.tokenizer is not None and self.level != "subword":
            raise UserError(
                f"data.tokenizer={self.tokenizer} goes with data.level=subword, not with data.level={self.level}"
            )
        self._check_source()

    def _check_source(self) -> None:
        origin = self.origin
        if self.split is not None and (len(self.members) == 3 or (origin == "path" and not isfile(self.path or ""))):
            raise UserError(f"data.split={self.split} does not go with data={self.name}, whose files are the splits")
        if origin == "download" and not (self.file or self.urls):
            raise UserError(f"data={self.name} has neither data.file nor data.urls nor data.path; give data.file=PATH")
        if origin == "path" and self.path is None:
            raise UserError(
                f"data={self.name} needs data.path=DIR, a folder that holds train.txt, valid.txt and test.txt, or "
                f"data.path=FILE, one text"
            )
        if self.path is not None and origin != "path":
            instead = "leave it out" if origin == "stdlib" else "give data.file=PATH"
            raise UserError(f"data.path={self.path} goes with data=files; for data={self.name} {instead}")
        if self.file is not None and origin != "download":
            raise UserError(f"data.file={self.file} does not go with data={self.name}; give data=files data.path=DIR")

    @property
    def origin(self) -> str:
        """Where the text comes from: download, path or stdlib."""
        if self.source != "auto":
            return self.source
        return "path" if self.path is not None and not (self.file or self.urls) else "download"

    @property
    def ends_in_eos(self) -> bool:
        """Whether a line end becomes the token <eos>."""
        return self.level == "word" if self.line_ends == "auto" else self.line_ends == "eos"


@dataclass
class OptimizerConfig:
    """How gradients become updates."""

    name: Annotated[str, OneOf(OPTIMIZERS)] = MISSING
    """Name of the optimizer."""
    lr: Rate = MISSING
    """Learning rate after the warm-up."""
    clip: Annotated[float, Range(0, FP32_MAX, above=True)] = MISSING
    """Largest gradient norm; longer gradients are scaled down to it. adagrad: of each tensor. Others: of all
    together."""
    momentum: Probability = 0.0
    """Momentum of sgd and muon."""
    betas: list[Probability] = field(default_factory=lambda: [0.9, 0.999])
    """How slowly the two moments of AdamW change, for adamw and muon."""
    weight_decay: Annotated[float, Range(0, 1)] = 0.0
    """Fraction of the rate by which adamw and muon shrink the matrices of the hidden layers in an update."""
    span_lr: Rate | None = None
    """Learning rate of the spans for adamw and muon: about the fraction of `model.max_span` that a span moves in an
    update. null: as that of embeddings and norms."""
    adamw_lr: Rate | None = None
    """Learning rate for muon of all that is no matrix of a hidden layer, which AdamW updates."""

    def validate(self) -> None:
        """Check the values, and how they go together.

        Raises:
            UserError: One is not allowed.
        """
        check(self, "optimizer.")
        default = OptimizerConfig()
        for key in ("momentum", "betas", "weight_decay", "span_lr", "adamw_lr"):
            value, readers = (
                getattr(self, key),
                [name for name in OPTIMIZERS if key in OPTIMIZERS.fact(name, "reads", ())],
            )
            if value != getattr(default, key) and self.name not in readers:
                raise UserError(
                    f"optimizer.{key}={value} goes with optimizer={' or '.join(readers)}, not with {self.name}"
                )
        if len(self.betas) != 2:
            raise UserError(f"optimizer.betas={self.betas} must be two numbers, of the mean and of the square")
        if self.name == "muon" and self.adamw_lr is None:
            raise UserError(
                "optimizer.name=muon alone leaves the rates of another optimizer; give optimizer=muon, which brings "
                "its own"
            )


@dataclass
class HardwareConfig:
    """Where to compute: devices and processes of this machine, or jobs on a SLURM cluster."""

    device: Annotated[str, OneOf(DEVICES)] = "auto"
    """Kind of device. auto: a GPU where there is one, else the CPU."""
    processes: CountOrNone = 1
    """Processes per machine, each with one GPU or its share of the CPU cores. 0: one per GPU."""
    precision: Annotated[str, OneOf(PRECISIONS)] = "auto"
    """Number format of matrix products. auto: that of the checkpoint; at the start bf16 where a GPU has it in hardware,
    else fp32; for scores fp32. tf32: fp32 whose factors lost 13 bits, on the tensor cores of NVIDIA GPUs."""
    graphs: Annotated[str, OneOf(GRAPHS)] = "auto"
    """Whether a GPU gets a whole step at once, as a CUDA graph. off: operations are launched one by one."""
    compile: bool = False
    """Compile the model with `torch.compile`."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass. Takes less memory and more time."""
    timeout: Annotated[float, Range(0, YEAR, above=True)] = 10.0
    """Minutes that a process waits for another before all of them end."""
    max_restarts: CountOrNone = 0
    """How often processes are started again after one was lost or failed. They resume from the last checkpoint."""
    nodes: Size = 1
    """SLURM: number of nodes."""
    gpus: str | None = None
    """SLURM: GPUs per node. A number, or a type with one, like a100:2. null: all of them."""
    cpus: Size | None = None
    """SLURM: CPU cores per node. null: the share that goes with its GPUs."""
    memory: str | None = None
    """SLURM: memory per node, like 16GB; a number alone is GB. null: the cluster's default."""
    partition: str | None = None
    """SLURM: partition. null: the cluster's default."""
    account: str | None = None
    """SLURM: account that pays. null: your default."""
    qos: str | None = None
    """SLURM: quality of service. null: your default."""
    constraint: str | None = None
    """SLURM: a feature that the nodes must have, like a100. null: none."""
    time: str = "1440"
    """SLURM: minutes, or like 2:00:00 or 1-12:00:00. Then a job saves, requeues and resumes."""
    requeues: SizeOrNone = 100
    """SLURM: how often a job may queue again at its time limit."""
    parallel_jobs: Size = 8
    """SLURM: how many jobs of a sweep run at once."""
    wait: bool = False
    """SLURM: show how the jobs are doing until they end, and fail if one of them fails."""
    setup: list[str] = field(default_factory=list)
    """SLURM: shell lines that a job runs before Python, like ["module load cuda"]. A line that fails ends the job."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """SLURM: any other options of sbatch, like {exclude: n1, mail-type: END}."""

    def validate(self) -> None:
        """Check the values, and how they go together.

        Raises:
            UserError: One is not allowed.
        """
        check(self, "hardware.")
        _ = self.minutes, self.megabytes, self.wanted_gpus
        if self.max_restarts and self.nodes > 1:
            raise UserError(
                f"hardware.max_restarts={self.max_restarts} is for the processes of one machine, not of "
                f"hardware.nodes={self.nodes}; leave it out"
            )
        if self.device == "cpu" and self.processes == 0:
            raise UserError("hardware.processes=0 starts one for each GPU, but hardware.device=cpu; give their number")

    @property
    def minutes(self) -> int:
        """`time` in minutes."""
        return quantities.minutes(self.time)

    @property
    def megabytes(self) -> int | None:
        """`memory` in MB; None: the cluster's default."""
        return None if self.memory is None else quantities.megabytes(self.memory)

    @property
    def wanted_gpus(self) -> Gpus | None:
        """`gpus`, read; None: all of a node's."""
        return None if self.gpus is None else quantities.gpus(self.gpus)

    @property
    def world_size(self) -> int:
        """Processes over all nodes, as far as this is known before the nodes report their GPUs."""
        return self.nodes * max(1, self.processes or (self.wanted_gpus.count if self.wanted_gpus else 1))


@dataclass
class TrackingConfig:
    """Who keeps curves, beside metrics.jsonl."""

    name: Annotated[str, OneOf(TRACKERS)] = MISSING
    """Where curves are kept beside metrics.jsonl: Weights & Biases, TensorBoard, or nowhere."""
    mode: Annotated[str, OneOf(WANDB_MODES)] = "auto"
    """Mode of Weights & Biases. auto: online where somebody is logged in, else offline."""
    project: str = "adaptive-span"
    """Project of Weights & Biases."""
    entity: str | None = None
    """User or team of Weights & Biases that the project belongs to. null: your default."""
    group: str | None = None
    """Group of runs in Weights & Biases. null: `run.group`, so that the runs of a sweep have one."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run in Weights & Biases."""


@dataclass
class TrainConfig:
    """How long and on how much to train."""

    steps: Count = MISSING
    """Updates at the full learning rate. More can be asked for later."""
    finetune_steps: CountOrNone = 0
    """Updates at a tenth of the learning rate, after the others."""
    warmup_steps: CountOrNone = MISSING
    """Updates over which the learning rate rises from 0."""
    batch_size: Size = MISSING
    """Rows of text per update, over all processes."""
    batch_split: Size = 1
    """Slices of a process's rows, one after the other, for one update (gradient accumulation)."""
    span_penalty: Annotated[float, Range(0, FP32_MAX)] = MISSING
    """Weight of the spans in the loss: nats per token of mean span, summed over the layers."""
    seed: CountOrNone = 1
    """Seed of the initial weights, of dropout, and of the token where each later pass begins."""
    init_from: Path | None = None
    """Checkpoint, or exported folder, whose weights to start from. null: new weights. Its heads may have fixed spans,
    or a smaller `model.max_span`: they begin at their old reach."""
    continue_from: Path | None = None
    """Checkpoint to resume in a new run: weights, optimizer state and step. null: start at step 0."""
    freeze: Annotated[str, OneOf(FREEZES)] = "none"
    """What stays as it is. weights: all that `train.init_from` brings but the spans, which alone are trained."""
    deterministic: bool = False
    """On a GPU, use only operations that give the same bits each time. They can be slower."""
    schedule: Annotated[str, OneOf(SCHEDULES)] = "constant"
    """How the learning rate changes from update to update, after the warm-up. constant: it stays, and falls to a tenth
    for `train.finetune_steps`. linear, cosine: it falls until the last step. inverse_sqrt: it falls with the root of
    the steps. warmup_stable_decay: it stays, and falls in the last `train.decay_steps`."""
    final_rate: Annotated[float, Range(0, 1)] = 0.0
    """The fraction of `optimizer.lr` that linear, cosine and warmup_stable_decay end at."""
    decay_steps: Count | None = None
    """Updates over which warmup_stable_decay falls. null: a fifth of `train.steps`."""
    average: Annotated[float, Range(0, 1, below=True)] = 0.0
    """Decay per update of a moving average of the weights, like 0.999, scored beside them. 0: no average."""

    @property
    def total_steps(self) -> int:
        """Updates of both phases."""
        return self.steps + self.finetune_steps

    @property
    def falling_steps(self) -> int:
        """Updates over which warmup_stable_decay falls."""
        return -(-self.steps // 5) if self.decay_steps is None else self.decay_steps

    def validate(self) -> None:
        """Check the values, and how they go together.

        Raises:
            UserError: One is not allowed.
        """
        check(self, "train.")
        if self.init_from and self.continue_from:
            raise UserError(
                f"train.init_from={self.init_from} takes weights alone and train.continue_from="
                f"{self.continue_from} resumes a training; give one of them"
            )
        if self.freeze == "weights" and not (self.init_from or self.continue_from):
            raise UserError(
                "train.freeze=weights trains the spans alone, of weights that are there; give train.init_from=FILE"
            )
        self._check_schedule()

    def _check_schedule(self) -> None:
        falls, wsd = decays(self.schedule), self.schedule == "warmup_stable_decay"
        if self.final_rate and not falls:
            raise UserError(f"train.final_rate={self.final_rate:g} has no effect on train.schedule={self.schedule}")
        if self.decay_steps is not None and not wsd:
            raise UserError(
                f"train.decay_steps={self.decay_steps} goes with train.schedule=warmup_stable_decay, not with "
                f"{self.schedule}"
            )
        if not falls:
            return
        if self.finetune_steps:
            raise UserError(
                f"train.finetune_steps={self.finetune_steps} follow a rate that stays, and train.schedule="
                f"{self.schedule} falls; give train.finetune_steps=0"
            )
        fall = self.falling_steps if wsd else 1
        if self.warmup_steps + fall > self.steps:
            what = f"train.warmup_steps={self.warmup_steps}" + (f" and {fall} of decay" if wsd else " and a fall")
            raise UserError(f"{what} take more than train.steps={self.steps}; give more steps or a shorter schedule")


@dataclass
class ValidationConfig:
    """How often to score a part of valid."""

    every: Count = MISSING
    """Steps between two validations."""
    blocks: Count = MISSING
    """Blocks of each of valid's rows that are scored, from its start. The weights that do best on them are kept."""


@dataclass
class CheckpointConfig:
    """How often to save."""

    every: Count = MISSING
    """Steps between two checkpoints. SIGTERM and Ctrl-C save one too."""
    keep: Count = 2
    """How many of the newest checkpoints to keep. The best one by validation is kept beside them."""


@dataclass
class LogConfig:
    """How often to record metrics."""

    every: Count = MISSING
    """Steps between two lines of metrics."""


@dataclass
class SearchConfig:
    """How to choose the values of runs within the ranges of a sweep's file."""

    name: Annotated[str, OneOf(SEARCHES)] | None = None
    """Who chooses. null: nobody does, and a sweep's file holds values alone."""
    trials: Count | None = None
    """How many runs a search has, with those that failed or were pruned. More can be asked for later."""
    prune_after: CountOrNone | None = None
    """How many runs are completed before one that validates worse than their median is pruned. That is, it is ended
    early. null: none is."""
    trial: CountOrNone | None = None
    """Number of the run. Its search gives it."""

    def validate(self) -> None:
        """Check how the values go together.

        Raises:
            UserError: Without a search they mean nothing, and a search needs a number of trials.
        """
        for key in ("trials", "prune_after", "trial"):
            if self.name is None and (value := getattr(self, key)) is not None:
                raise UserError(f"search.{key}={value} is for a search; give search=optuna too")
        if self.name is not None and self.trials is None:
            raise UserError("search.trials=null must be a whole number: how many runs the search has")


@dataclass
class RunConfig:
    """Where the run is kept, and what it is called."""

    dir: Path | None = None
    """Directory of the run, which the same command resumes. null: runs/<data>-<model>-<hash>."""
    name: str | None = None
    """What the run is called. null: in a sweep what sets it apart from the others, else the name of its directory."""
    group: str | None = None
    """What the runs of a sweep are called together. null: in a sweep the name of its directory."""


@dataclass
class Config:
    """The configuration of one training run."""

    model: ModelConfig = MISSING
    """The network."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How gradients become updates."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    """Where to compute: devices and processes here, or jobs on a SLURM cluster."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Who keeps curves, beside metrics.jsonl."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long and on how much to train."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """How often to score a part of valid."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """How often to save."""
    log: LogConfig = field(default_factory=LogConfig)
    """How often to record metrics."""
    run: RunConfig = field(default_factory=RunConfig)
    """Where the run is kept, and what it is called."""
    plugins: list[str] = field(default_factory=list)
    """Modules of your own, from the working directory or Python's path. Every process imports them, for the
    attentions, optimizers, schedules and trackers that they register."""
    numbering: Numbering | None = None
    """same: a checkpoint without a vocabulary is taken to number tokens as the data does. null: refuse it."""
    published: dict[str, float] = field(default_factory=dict)
    """Scores that the papers report, of valid and test: bpc of bytes, perplexity of words. They are printed beside the
    run's."""
    sweep: dict[str, Any] = field(default_factory=dict)
    """Values of keys, separated by commas: one run per combination. A file of sweeps/ fills it. Lists below `pairs`
    vary together, and a search chooses within those below `ranges`."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """How to choose the values of runs within the ranges of a sweep's file."""

    def validate(self) -> None:
        """Check the values, and how they go together.

        Raises:
            UserError: One is not allowed.
        """
        plugins.load(self.plugins)  # their names may be values of other keys
        check(self)
        for part in (self.model, self.data, self.optimizer, self.hardware, self.train, self.search):
            part.validate()
        check_batch("train.batch_size", self.train.batch_size, self.hardware.world_size, self.train.batch_split)
        if self.model.cutoffs and self.data.level != "word":
            raise UserError(
                f"model.cutoffs={self.model.cutoffs} cut a vocabulary of words, but data.level={self.data.level}; "
                f"take data=wikitext103, or data=files with data.level=word"
            )
        if self.train.freeze == "weights" and not self.model.adaptive_span:
            raise UserError(
                "train.freeze=weights trains the spans alone, but with model.adaptive_span=false there are none; leave "
                "one of them out"
            )
        weights = self.train.init_from or self.train.continue_from
        if self.data.level == "subword" and self.data.tokenizer is None and weights is None:
            raise UserError(
                "data.level=subword needs data.tokenizer=PATH, a tokenizer.json as the library `tokenizers` saves it"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values, without passwords and tokens, as it is written to disk."""
        return {key: without_secrets(value) for key, value in asdict(self).items()}
