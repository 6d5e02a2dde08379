"""The typed configuration behind `conf/`, and the checks that make a wrong value one clear sentence.

Plain dataclasses: nothing here imports torch, so `--help` and `--cfg job` answer at once, and nothing here
knows Hydra, so a `ModelConfig` made by hand is as good as a composed one.
"""

from dataclasses import asdict, dataclass, field, replace
from math import isqrt
from typing import Annotated, Any

from adaptive_span.config import quantities
from adaptive_span.config.checks import FP32_MAX, MISSING, OneOf, Pattern, Range, check, path
from adaptive_span.config.quantities import Gpus
from adaptive_span.errors import UserError, check_batch, either
from adaptive_span.terminal.plain_text import without_secrets

ATTENTIONS = ("auto", "dense", "banded", "fused")
DATA_NAMES = ("stdlib", "enwik8", "text8", "wikitext103", "files")
DEVICES = ("auto", "cpu", "cuda", "mps")
GRAPHS = ("auto", "off")
LEVELS = ("byte", "word")
OPTIMIZERS = ("adagrad", "adam", "sgd")
PRECISIONS = ("auto", "fp32", "bf16", "tf32")
PROTOCOLS = ("exact", "published")
TRACKERS = ("wandb", "none")
WANDB_MODES = ("auto", "online", "offline")

MANY = 2**63 - 1  # what 64 bits hold: of what is only counted
YEAR = 525_600  # minutes
LONG = 2**31 - 1  # of a dimension of tensors, which memory limits further
Count = Annotated[int, Range(1, MANY)]
CountOrNone = Annotated[int, Range(0, MANY)]
Size = Annotated[int, Range(1, LONG)]
SizeOrNone = Annotated[int, Range(0, LONG)]
Probability = Annotated[float, Range(0, 1, below=True)]
Rate = Annotated[float, Range(0, 1e30, above=True)]  # beyond, what an optimizer makes of it is no number
Path = Annotated[str, path]
Sha256 = Annotated[str, Pattern("[0-9a-f]{64}", "64 digits of 0-9 and a-f")]
Address = Annotated[str, Pattern("https?://[^/]+/.*[^/]", "the address of a file, like https://host/text.zip")]
Numbering = Annotated[str, OneOf(("same",))]


@dataclass
class ModelConfig:
    """Sizes of the Transformer. Published names: N, C, F, H, L, M, R of arXiv 1905.07799."""

    name: str
    num_layers: Annotated[int, Range(1, 10_000)]
    hidden_size: Size
    ffn_size: SizeOrNone  # 0: no feed-forward
    num_heads: Size
    max_span: Size  # tokens
    block_size: Size  # tokens predicted in one step
    adaptive_span: bool = True  # False: every head always looks at max_span tokens
    ramp: Size = 32  # tokens over which the soft mask falls from 1 to 0
    span_init: Annotated[float, Range(0, 1)] = 0.0  # fraction of max_span
    trim_cache: bool = True  # keep as many past hidden states as the longest head of a layer looks at
    memory_size: SizeOrNone = 0  # persistent vectors of each head, in place of the feed-forward
    layer_order: str | None = None  # a: attention, f: feed-forward, like aaafff; sandwich; null: they alternate
    dropout: Probability = 0.0  # of attention weights and inside the feed-forward
    attention_dropout: Probability | None = None  # of attention weights alone; null: as dropout
    ffn_dropout: Probability | None = None  # inside the feed-forward alone; null: as dropout
    embedding_dropout: Probability = 0.0  # after the embedding and before the output layer
    cutoffs: list[Count] = field(default_factory=list)  # adaptive input and output: where clusters of words begin
    division: Size = 4  # each cluster's vectors are so many times smaller than those of the one before
    tied: bool = True  # adaptive input and output share their vectors
    attention: Annotated[str, OneOf(ATTENTIONS)] = "auto"

    def validate(self) -> None:
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
        self._check_adaptive_io()
        self.block_order()

    def _check_adaptive_io(self) -> None:
        if sorted(set(self.cutoffs)) != self.cutoffs:
            raise UserError(f"model.cutoffs={self.cutoffs} must increase")
        if self.hidden_size < self.division ** len(self.cutoffs):
            raise UserError(
                f"model.division={self.division} leaves nothing of model.hidden_size={self.hidden_size} for the last "
                f"of {len(self.cutoffs) + 1} clusters; take a smaller one, or fewer model.cutoffs"
            )

    @property
    def reads_by_frequency(self) -> bool:
        """Whether the vocabulary must be numbered by falling frequency."""
        return bool(self.cutoffs)

    def block_order(self) -> str:
        """A letter a block, from the input on: a for attention, f for feed-forward."""
        layers = self.num_layers
        if not self.ffn_size:
            if self.layer_order is not None:
                raise UserError(
                    f"model.layer_order={self.layer_order} orders attention and feed-forward blocks, but "
                    f"model.ffn_size=0 leaves out the feed-forward; take model.layer_order=null"
                )
            return "a" * layers
        if self.layer_order is None:
            return "af" * layers
        if self.layer_order == "sandwich":  # arXiv 1911.03864, with half of the layers taken apart
            apart = layers // 2
            return "a" * apart + "af" * (layers - apart) + "f" * apart
        if sorted(self.layer_order) != ["a"] * layers + ["f"] * layers:
            raise UserError(
                f"model.layer_order={self.layer_order} must be sandwich, or hold model.num_layers={layers} times a "
                f"(attention) and as often f (feed-forward), like {'a' * layers + 'f' * layers}"
            )
        return self.layer_order


@dataclass
class DataConfig:
    """Where the text comes from and how it becomes token ids (see `corpus.py`)."""

    name: Annotated[str, OneOf(DATA_NAMES)] = MISSING
    level: Annotated[str, OneOf(LEVELS)] = "byte"  # a token is a byte, or a word
    file: Path | None = None  # a local copy of a downloadable corpus: raw, .zip, .gz or .xz
    path: Path | None = None  # data=files: the folder that holds train.txt, valid.txt and test.txt
    split: list[Count] | None = None  # bytes of train, valid and test at the start of the file
    directory: Path = "data"  # where downloads and numbered corpora are kept
    urls: list[Address] = field(default_factory=list)  # tried in this order
    size: Count | None = None  # of the download, in bytes
    sha256: Sha256 | None = None  # of the download
    unpacked_size: Count | None = None  # of the text in the download, in bytes
    unpacked_sha256: Sha256 | None = None  # of that text
    symbols: str | None = None  # all that the text consists of
    holds: str | None = None  # what every piece of the text holds

    def validate(self) -> None:
        check(self, "data.")
        if self.split is not None and len(self.split) != 3:
            raise UserError(f"data.split={self.split} must be three positive numbers of bytes: [train, valid, test]")
        if self.split is not None and self.name == "files":
            raise UserError(f"data.split={self.split} does not go with data=files, whose files are the splits")
        if self.name not in ("stdlib", "files") and not (self.file or self.urls):
            raise UserError(f"data={self.name} has neither data.file nor data.urls; give data.file=PATH")
        if self.name == "files" and self.path is None:
            raise UserError("data=files needs data.path=DIR, a folder that holds train.txt, valid.txt and test.txt")
        if self.path is not None and self.name != "files":
            instead = "leave it out" if self.name == "stdlib" else "give data.file=PATH"
            raise UserError(f"data.path={self.path} goes with data=files; for data={self.name} {instead}")
        if self.file is not None and self.name in ("files", "stdlib"):
            raise UserError(f"data.file={self.file} does not go with data={self.name}; give data=files data.path=DIR")


@dataclass
class OptimizerConfig:
    name: Annotated[str, OneOf(OPTIMIZERS)] = MISSING
    lr: Rate = MISSING
    clip: Annotated[float, Range(0, FP32_MAX, above=True)] = (
        MISSING  # adagrad: of each parameter tensor's gradient norm; adam, sgd: of the global norm
    )
    momentum: Probability = 0.0  # sgd

    def validate(self) -> None:
        check(self, "optimizer.")
        if self.momentum and self.name != "sgd":
            raise UserError(f"optimizer.momentum={self.momentum} goes with optimizer=sgd, not with {self.name}")


@dataclass
class HardwareConfig:
    device: Annotated[str, OneOf(DEVICES)] = "auto"
    processes: CountOrNone = 1  # on each machine, each with one GPU or its share of the CPU cores; 0: one for each GPU
    # Of matrix products. auto: that of the checkpoint; at the beginning bf16 where a GPU has it in hardware, else fp32;
    # scores in fp32. tf32: fp32 whose factors have lost 13 bits, on the tensor cores of NVIDIA GPUs.
    precision: Annotated[str, OneOf(PRECISIONS)] = "auto"
    graphs: Annotated[str, OneOf(GRAPHS)] = "auto"  # on a GPU: a step as one CUDA graph; off: launched one by one
    compile: bool = False
    activation_checkpointing: bool = False  # recompute each layer in the backward pass
    timeout: Annotated[float, Range(0, YEAR, above=True)] = (
        10.0  # minutes that one process waits for another before all end
    )
    max_restarts: CountOrNone = 0  # of the processes, after one of them was lost or failed; they resume what was saved

    # What to ask SLURM for; conf/hardware/slurm.yaml says more of each.
    nodes: Size = 1
    gpus: str | None = None  # of each node, like 2 or a100:2; null: all of them
    cpus: Size | None = None  # cores of each node; null: the share that goes with its GPUs
    memory: str | None = None  # of each node, like 16GB; null: what the cluster gives by default
    partition: str | None = None  # null: the cluster's default
    account: str | None = None
    qos: str | None = None  # quality of service
    constraint: str | None = None  # a feature that the nodes must have
    time: str = "1440"  # minutes, or as SLURM writes it
    requeues: SizeOrNone = 100  # how often a job that has reached its time limit goes on
    parallel_jobs: Size = 8  # of a sweep
    wait: bool = False  # until the jobs have ended
    setup: list[str] = field(default_factory=list)  # lines of shell that a job runs before Python
    sbatch: dict[str, Any] = field(default_factory=dict)  # every other option of sbatch

    def validate(self) -> None:
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
        return quantities.minutes(self.time)

    @property
    def megabytes(self) -> int | None:
        return None if self.memory is None else quantities.megabytes(self.memory)

    @property
    def wanted_gpus(self) -> Gpus | None:
        return None if self.gpus is None else quantities.gpus(self.gpus)

    @property
    def world_size(self) -> int:
        """Processes over all nodes, as far as it is known before they have been asked for their GPUs."""
        return self.nodes * max(1, self.processes or (self.wanted_gpus.count if self.wanted_gpus else 1))


@dataclass
class TrackingConfig:
    name: Annotated[str, OneOf(TRACKERS)] = MISSING
    mode: Annotated[str, OneOf(WANDB_MODES)] = "auto"  # auto: online where somebody is logged in, else offline
    project: str = "adaptive-span"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class TrainConfig:
    steps: Count = MISSING  # updates at the full rate
    finetune_steps: CountOrNone = 0  # updates at a tenth of the rate, after those
    warmup_steps: CountOrNone = MISSING
    batch_size: Size = MISSING  # rows over all processes
    batch_split: Size = 1  # slices of a process's rows, one after the other, for one update
    span_penalty: Annotated[float, Range(0, FP32_MAX)] = (
        MISSING  # times the mean span of each layer, in nats a token of span
    )
    seed: CountOrNone = 1
    init_from: Path | None = None  # a checkpoint whose weights to begin with
    continue_from: Path | None = None  # a checkpoint whose weights, optimizer state and step to go on from
    deterministic: bool = False  # on a GPU, take only operations that give the same bits each time

    @property
    def total_steps(self) -> int:
        return self.steps + self.finetune_steps

    def validate(self) -> None:
        check(self, "train.")
        if self.init_from and self.continue_from:
            raise UserError(
                f"train.init_from={self.init_from} begins with weights alone and train.continue_from="
                f"{self.continue_from} goes on with a training; give one of them"
            )


@dataclass
class ValidationConfig:
    every: Count = MISSING  # steps
    blocks: Count = MISSING  # of the start of valid's rows, always the same ones


@dataclass
class CheckpointConfig:
    every: Count = MISSING  # steps
    keep: Count = 2  # the newest ones; the best one by validation is kept beside them


@dataclass
class LogConfig:
    every: Count = MISSING  # steps


@dataclass
class RunConfig:
    dir: Path | None = None  # runs/<data>-<model>-<hash of the configuration>


@dataclass
class Config:
    """One training run."""

    model: ModelConfig = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    run: RunConfig = field(default_factory=RunConfig)
    numbering: Numbering | None = None  # same: take the ids of a checkpoint without a vocabulary for the data's
    published: dict[str, float] = field(default_factory=dict)  # what the papers report: valid, test
    sweep: dict[str, Any] = field(default_factory=dict)  # a file of sweeps/: values of keys

    def validate(self) -> None:
        """Raise `UserError` at the first value, or combination of values, that can't be honoured."""
        check(self)
        for part in (self.model, self.data, self.optimizer, self.hardware, self.train):
            part.validate()
        check_batch("train.batch_size", self.train.batch_size, self.hardware.world_size, self.train.batch_split)
        if self.model.cutoffs and self.data.level != "word":
            raise UserError(
                f"model.cutoffs={self.model.cutoffs} cut a vocabulary of words, but data.level={self.data.level}; "
                f"take data=wikitext103, or data=files with data.level=word"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return it as it is written down: plain values, without passwords and tokens."""
        return {key: without_secrets(value) for key, value in asdict(self).items()}


@dataclass
class EvaluateConfig:
    """One scoring of a checkpoint."""

    run: Path | None = None  # a run directory: its best checkpoint is scored
    checkpoint: Path | None = None  # or one file, which may be one of the original project's
    data: DataConfig = field(default_factory=DataConfig)  # that of the training where its name is ""
    numbering: Numbering | None = None  # same: take the ids of a checkpoint without a vocabulary for the data's
    protocol: Annotated[str, OneOf(PROTOCOLS)] = "exact"
    batch_size: Size = 8  # rows
    block_size: Size | None = None  # tokens; that of the training where not given
    output: Path | None = None  # folder of evaluation.json; null: the run's, or this one for a checkpoint
    hardware: HardwareConfig = field(default_factory=HardwareConfig)

    def validate(self) -> None:
        if (self.run is None) == (self.checkpoint is None):
            raise UserError("evaluate.py needs one of run=DIR (its best checkpoint is scored) and checkpoint=FILE")
        check(replace(self, data=replace(self.data, name=self.data.name or "files")))
        if self.data.name:
            self.data.validate()
        self.hardware.validate()
        check_batch("batch_size", self.batch_size, self.hardware.processes)
