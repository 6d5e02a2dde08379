"""The typed configuration behind `conf/launch.yaml`. The docstring under a field is the one place of its key's meaning.

Plain dataclasses: nothing here imports torch, so `--help` and `--cfg job` answer at once, and nothing here knows Hydra,
so a `ModelConfig` made by hand is as good as a composed one.
"""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from adaptive_span.config import plugins
from adaptive_span.config.checks import MISSING, OneOf, check
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.config.kinds import Count, CountOrNone, Numbering, Path
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.optimizer_schema import OptimizerConfig
from adaptive_span.config.registry import TRACKERS
from adaptive_span.config.train_schema import TrainConfig
from adaptive_span.errors import UserError, check_batch
from adaptive_span.terminal.plain_text import without_secrets

SEARCHES = ("optuna",)
WANDB_MODES = ("auto", "online", "offline")


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
