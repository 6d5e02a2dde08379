"""The typed configuration behind `conf/`, and the checks that make a wrong value one clear sentence.

Plain dataclasses: nothing here imports torch, so `--help` and `--cfg job` answer at once, and nothing here
knows Hydra, so a `ModelConfig` made by hand is as good as a composed one.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from adaptive_span import quantities
from adaptive_span.errors import UserError, at_least, check_batch, either, one_of
from adaptive_span.quantities import Gpus

MISSING: Any = "???"  # the mark that Hydra fills in from conf/

ATTENTIONS = ("auto", "dense", "banded", "fused")
DATA_NAMES = ("stdlib", "enwik8", "text8", "wikitext103", "files")
DEVICES = ("auto", "cpu", "cuda")
LEVELS = ("byte", "word")
OPTIMIZERS = ("adagrad", "adam", "sgd")
PRECISIONS = ("fp32", "bf16")
PROTOCOLS = ("exact", "published")
TRACKERS = ("wandb", "none")
WANDB_MODES = ("auto", "online", "offline")


@dataclass
class ModelConfig:
    """Sizes of the Transformer. Published names: N, C, F, H, L, M, R of arXiv 1905.07799."""

    name: str = MISSING
    num_layers: int = MISSING
    hidden_size: int = MISSING
    ffn_size: int = MISSING  # 0: no feed-forward
    num_heads: int = MISSING
    max_span: int = MISSING  # tokens
    block_size: int = MISSING  # tokens predicted in one step
    adaptive_span: bool = True  # False: every head always looks at max_span tokens
    ramp: int = 32  # tokens over which the soft mask falls from 1 to 0
    span_init: float = 0.0  # fraction of max_span
    trim_cache: bool = True  # keep as many past hidden states as the longest head of a layer looks at
    memory_size: int = 0  # persistent vectors of each head, in place of the feed-forward
    layer_order: str | None = None  # a: attention, f: feed-forward, like aaafff; sandwich; null: they alternate
    dropout: float = 0.0  # of attention weights and inside the feed-forward
    attention_dropout: float | None = None  # of attention weights alone; null: as dropout
    ffn_dropout: float | None = None  # inside the feed-forward alone; null: as dropout
    embedding_dropout: float = 0.0  # after the embedding and before the output layer
    cutoffs: list[int] = field(default_factory=list)  # adaptive input and output: where clusters of words begin
    division: int = 4  # each cluster's vectors are so many times smaller than those of the one before
    tied: bool = True  # adaptive input and output share their vectors
    attention: str = "auto"

    def validate(self) -> None:
        for key in ("num_layers", "hidden_size", "num_heads", "max_span", "block_size", "ramp"):
            at_least(f"model.{key}", getattr(self, key), 1)
        at_least("model.ffn_size", self.ffn_size, 0)
        at_least("model.memory_size", self.memory_size, 0)
        for key in ("dropout", "attention_dropout", "ffn_dropout", "embedding_dropout"):
            if not 0 <= (getattr(self, key) or 0) < 1:
                raise UserError(f"model.{key}={getattr(self, key)} must be at least 0 and below 1")
        if not 0 <= self.span_init <= 1:
            raise UserError(f"model.span_init={self.span_init} is a fraction of max_span and must lie in [0, 1]")
        if self.hidden_size % self.num_heads:
            allowed = [h for h in range(1, self.hidden_size + 1) if self.hidden_size % h == 0]
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
        one_of("model.attention", self.attention, ATTENTIONS)

    def _check_adaptive_io(self) -> None:
        if self.cutoffs and (self.cutoffs[0] < 1 or sorted(set(self.cutoffs)) != self.cutoffs):
            raise UserError(f"model.cutoffs={self.cutoffs} must be positive and increase")
        at_least("model.division", self.division, 1)
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

    name: str = MISSING
    level: str = "byte"  # a token is a byte, or a word
    file: str | None = None  # a local copy of a downloadable corpus: raw, .zip, .gz or .xz
    path: str | None = None  # data=files: the folder that holds train.txt, valid.txt and test.txt
    split: list[int] | None = None  # bytes of train, valid and test at the start of the file
    directory: str = "data"  # where downloads and numbered corpora are kept
    urls: list[str] = field(default_factory=list)  # tried in this order
    size: int | None = None  # of the download, in bytes
    sha256: str | None = None  # of the download
    unpacked_size: int | None = None  # of the text in the download, in bytes
    unpacked_sha256: str | None = None  # of that text
    symbols: str | None = None  # all that the text consists of
    holds: str | None = None  # what every piece of the text holds

    def validate(self) -> None:
        one_of("data.name", self.name, DATA_NAMES)
        one_of("data.level", self.level, LEVELS)
        if self.split is not None and (len(self.split) != 3 or min(self.split) < 1):
            raise UserError(f"data.split={self.split} must be three positive numbers of bytes: [train, valid, test]")
        if self.split is not None and self.name == "files":
            raise UserError(f"data.split={self.split} does not go with data=files, whose files are the splits")
        if self.name == "files" and self.path is None:
            raise UserError("data=files needs data.path=DIR, a folder that holds train.txt, valid.txt and test.txt")
        if self.path is not None and self.name != "files":
            instead = "leave it out" if self.name == "stdlib" else "give data.file=PATH"
            raise UserError(f"data.path={self.path} goes with data=files; for data={self.name} {instead}")
        if self.file is not None and self.name in ("files", "stdlib"):
            raise UserError(f"data.file={self.file} does not go with data={self.name}; give data=files data.path=DIR")


@dataclass
class OptimizerConfig:
    name: str = MISSING
    lr: float = MISSING
    clip: float = MISSING  # adagrad: of each parameter tensor's gradient norm; adam, sgd: of the global norm
    momentum: float = 0.0  # sgd

    def validate(self) -> None:
        one_of("optimizer.name", self.name, OPTIMIZERS)
        for key in ("lr", "clip"):
            if not 0 < getattr(self, key) < math.inf:
                raise UserError(f"optimizer.{key}={getattr(self, key)} must be a number above 0")
        if not 0 <= self.momentum < 1:
            raise UserError(f"optimizer.momentum={self.momentum} must be at least 0 and below 1")
        if self.momentum and self.name != "sgd":
            raise UserError(f"optimizer.momentum={self.momentum} goes with optimizer=sgd, not with {self.name}")


@dataclass
class HardwareConfig:
    device: str = "auto"
    processes: int = 1  # on each machine, each with one GPU or its share of the CPU cores; 0: one for each GPU
    precision: str = "fp32"  # bf16: matrix products under autocast
    compile: bool = False
    activation_checkpointing: bool = False  # recompute each layer in the backward pass

    # What to ask SLURM for; conf/hardware/slurm.yaml says more of each.
    nodes: int = 1
    gpus: str | None = None  # of each node, like 2 or a100:2; null: all of them
    cpus: int | None = None  # cores of each node; null: the share that goes with its GPUs
    memory: str | None = None  # of each node, like 16GB; null: what the cluster gives by default
    partition: str | None = None  # null: the cluster's default
    account: str | None = None
    qos: str | None = None  # quality of service
    constraint: str | None = None  # a feature that the nodes must have
    time: str = "1440"  # minutes, or as SLURM writes it
    requeues: int = 100  # how often a job that has reached its time limit goes on
    parallel_jobs: int = 8  # of a sweep
    wait: bool = False  # until the jobs have ended
    setup: list[str] = field(default_factory=list)  # lines of shell that a job runs before Python
    sbatch: dict[str, Any] = field(default_factory=dict)  # every other option of sbatch

    def validate(self) -> None:
        one_of("hardware.device", self.device, DEVICES)
        one_of("hardware.precision", self.precision, PRECISIONS)
        for key, least in (("processes", 0), ("nodes", 1), ("requeues", 0), ("parallel_jobs", 1)):
            at_least(f"hardware.{key}", getattr(self, key), least)
        if self.cpus is not None:
            at_least("hardware.cpus", self.cpus, 1)
        _ = self.minutes, self.megabytes, self.wanted_gpus
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
    name: str = MISSING
    mode: str = "auto"  # auto: online where somebody is logged in, else offline
    project: str = "adaptive-span"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)

    def validate(self) -> None:
        one_of("tracking.name", self.name, TRACKERS)
        one_of("tracking.mode", self.mode, WANDB_MODES)


@dataclass
class TrainConfig:
    steps: int = MISSING  # updates at the full rate
    finetune_steps: int = 0  # updates at a tenth of the rate, after those
    warmup_steps: int = MISSING
    batch_size: int = MISSING  # rows over all processes
    batch_split: int = 1  # slices of a process's rows, one after the other, for one update
    span_penalty: float = MISSING  # times the mean span of each layer, in nats a token of span
    seed: int = 1
    init_from: str | None = None  # a checkpoint whose weights to begin with
    continue_from: str | None = None  # a checkpoint whose weights, optimizer state and step to go on from

    @property
    def total_steps(self) -> int:
        return self.steps + self.finetune_steps

    def validate(self) -> None:
        for key, least in (("steps", 1), ("finetune_steps", 0), ("warmup_steps", 0), ("seed", 0)):
            at_least(f"train.{key}", getattr(self, key), least)
        at_least("train.batch_size", self.batch_size, 1)
        at_least("train.batch_split", self.batch_split, 1)
        if self.init_from and self.continue_from:
            raise UserError(
                f"train.init_from={self.init_from} begins with weights alone and train.continue_from="
                f"{self.continue_from} goes on with a training; give one of them"
            )
        if not 0 <= self.span_penalty < math.inf:
            raise UserError(f"train.span_penalty={self.span_penalty} must be a number, and not negative")
        if self.seed >= 2**63:
            raise UserError(f"train.seed={self.seed} must be below 2^63 = {2**63}")


@dataclass
class ValidationConfig:
    every: int = MISSING  # steps
    blocks: int = MISSING  # of the start of valid's rows, always the same ones

    def validate(self) -> None:
        at_least("validation.every", self.every, 1)
        at_least("validation.blocks", self.blocks, 1)


@dataclass
class CheckpointConfig:
    every: int = MISSING  # steps
    keep: int = 2  # the newest ones; the best one by validation is kept beside them

    def validate(self) -> None:
        at_least("checkpoint.every", self.every, 1)
        at_least("checkpoint.keep", self.keep, 1)


@dataclass
class LogConfig:
    every: int = MISSING  # steps

    def validate(self) -> None:
        at_least("log.every", self.every, 1)


@dataclass
class RunConfig:
    dir: str | None = None  # runs/<data>-<model>-<hash of the configuration>


@dataclass
class Config:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    run: RunConfig = field(default_factory=RunConfig)
    numbering: str | None = None  # same: the ids of a checkpoint without its vocabulary are taken for those of the data
    published: dict[str, float] = field(default_factory=dict)  # what the papers report: valid, test
    sweep: dict[str, Any] = field(default_factory=dict)  # a file of sweeps/: values of keys

    def validate(self) -> None:
        """Raise `UserError` at the first value, or combination of values, that can't be honoured."""
        for part in vars(self).values():
            if hasattr(part, "validate"):
                part.validate()
        check_numbering(self.numbering)
        check_batch("train.batch_size", self.train.batch_size, self.hardware.world_size, self.train.batch_split)
        if self.model.cutoffs and self.data.level != "word":
            raise UserError(
                f"model.cutoffs={self.model.cutoffs} cut a vocabulary of words, but data.level={self.data.level}; "
                f"take data=wikitext103, or data=files with data.level=word"
            )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class EvaluateConfig:
    """One scoring of a checkpoint."""

    run: str | None = None  # a run directory: its best checkpoint is scored
    checkpoint: str | None = None  # or one file, which may be one of the original project's
    data: DataConfig = field(default_factory=DataConfig)  # that of the training where its name is ""
    numbering: str | None = None  # same: the ids of a checkpoint without its vocabulary are taken for those of the data
    protocol: str = "exact"
    batch_size: int = 8  # rows
    block_size: int | None = None  # tokens; that of the training where not given
    output: str | None = None  # folder of evaluation.json; null: the run's, or this one for a checkpoint
    hardware: HardwareConfig = field(default_factory=HardwareConfig)

    def validate(self) -> None:
        if (self.run is None) == (self.checkpoint is None):
            raise UserError("evaluate.py needs one of run=DIR (its best checkpoint is scored) and checkpoint=FILE")
        check_numbering(self.numbering)
        one_of("protocol", self.protocol, PROTOCOLS)
        at_least("batch_size", self.batch_size, 1)
        if self.block_size is not None:
            at_least("block_size", self.block_size, 1)
        self.hardware.validate()
        check_batch("batch_size", self.batch_size, self.hardware.processes)


def check_numbering(value: str | None) -> None:
    if value not in (None, "same"):
        raise UserError(f"numbering={value} must be same, or null")
