"""The typed configuration of `adaptive-span generate`, behind `conf/generate.yaml`."""

from dataclasses import dataclass, field, replace
from typing import Annotated

from adaptive_span.config import plugins
from adaptive_span.config.checks import LONG, Range, check, check_source
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.config.kinds import Numbering, Path, Size
from adaptive_span.errors import UserError, shown


@dataclass
class GenerateConfig:
    """The configuration of text that a checkpoint writes."""

    run: Path | None = None
    """Directory of a run whose best checkpoint writes."""
    checkpoint: Path | None = None
    """A checkpoint file that writes, also one of the original project, or an exported folder."""
    prompt: str | None = None
    """The beginning of the text. null: standard input, or a line end where that is a terminal."""
    prompt_file: Path | None = None
    """A file that holds the beginning of the text."""
    length: Size = 500
    """Tokens to write."""
    samples: Size = 1
    """Texts to write, side by side."""
    temperature: Annotated[float, Range(0, 1000)] = 1.0
    """Divisor of log-probabilities. Below 1 the text is more likely and less varied; 0 takes the most likely
    token."""
    top_k: Size | None = None
    """Draw from the k most likely tokens. null: from all."""
    top_p: Annotated[float, Range(0, 1, above=True)] | None = None
    """Draw from the fewest tokens whose probabilities add up to p. null: from all."""
    seed: Annotated[int, Range(0, LONG)] = 1
    """Seed of the draws. The same seed gives the same text."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text that a checkpoint without a vocabulary was trained on: its symbols are numbered by it."""
    numbering: Numbering | None = None
    """same: a checkpoint without a vocabulary is taken to number tokens as the data does. null: refuse it."""
    plugins: list[str] = field(default_factory=list)
    """Modules of your own, imported for the attention that the checkpoint was trained with."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    """Where to compute."""

    def validate(self) -> None:
        """Check the values, and how they go together.

        Raises:
            UserError: One is not allowed.
        """
        plugins.load(self.plugins)
        check_source("generate", "writes", self.run, self.checkpoint)
        if self.prompt is not None and self.prompt_file is not None:
            raise UserError("generate takes one of prompt=TEXT and prompt_file=FILE")
        if self.prompt and "\n" in self.prompt:
            raise UserError(f"prompt={shown(self.prompt)} holds a line end; give it by prompt_file=FILE or on stdin")
        check(replace(self, data=replace(self.data, name=self.data.name or "any")))
        if self.data.name:
            self.data.validate()
        self.hardware.validate()
        if self.hardware.processes > 1:
            raise UserError(f"hardware.processes={self.hardware.processes}, but one process writes; leave it at 1")
        if self.hardware.precision == "tf32":
            raise UserError("hardware.precision=tf32, but text is written in fp32 or bf16; take one of them")
