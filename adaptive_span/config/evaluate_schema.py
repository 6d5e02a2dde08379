"""The typed configuration of `adaptive-span evaluate`, behind `conf/evaluate.yaml`."""

from dataclasses import dataclass, field, replace
from typing import Annotated

from adaptive_span.config import plugins
from adaptive_span.config.checks import OneOf, check, check_source
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.config.kinds import Numbering, Path, Size
from adaptive_span.errors import check_batch

PROTOCOLS = ("exact", "published")


@dataclass
class EvaluateConfig:
    """The configuration of one scoring of a checkpoint."""

    run: Path | None = None
    """Directory of a run whose best checkpoint to score."""
    checkpoint: Path | None = None
    """A checkpoint file to score, also one of the original project, or an exported folder."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text. With an empty `data.name`, that of the training."""
    numbering: Numbering | None = None
    """same: a checkpoint without a vocabulary is taken to number tokens as the data does. null: refuse it."""
    protocol: Annotated[str, OneOf(PROTOCOLS)] = "exact"
    """How to score. exact: every token, each from all that the model can see. published: as the papers' numbers were
    made."""
    max_span: list[Size] = field(default_factory=list)
    """Cuts, in tokens: a score for each, with no head looking farther. The soft ramp of a head that would ends at the
    cut. Empty: one score, with the spans as they are."""
    batch_size: Size = 8
    """Rows scored at once. Changes an exact score only by rounding."""
    block_size: Size | None = None
    """Tokens of each row per step. null: as in training."""
    output: Path | None = None
    """Folder of evaluation.json. null: the run's; for a checkpoint the current one."""
    plugins: list[str] = field(default_factory=list)
    """Modules of your own, imported for the attention that the checkpoint was trained with."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    """Where to compute: devices and processes."""

    def validate(self) -> None:
        """Check the values, and how they go together.

        Raises:
            UserError: One is not allowed.
        """
        plugins.load(self.plugins)
        check_source("evaluate.py", "is scored", self.run, self.checkpoint)
        check(replace(self, data=replace(self.data, name=self.data.name or "any")))
        if self.data.name:
            self.data.validate()
        self.hardware.validate()
        check_batch("batch_size", self.batch_size, self.hardware.processes)
