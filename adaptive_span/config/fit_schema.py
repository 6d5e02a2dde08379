"""The typed configuration of `adaptive-span fit`, behind `conf/fit.yaml`."""

from dataclasses import dataclass, field
from typing import Annotated

from adaptive_span.config.checks import LONG, MISSING, Range, check
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.config.kinds import Path, Size, SizeOrNone
from adaptive_span.errors import UserError


@dataclass
class FitModelConfig:
    """The model whose heads are fitted, a causal language model of transformers."""

    name: str = MISSING
    """A folder, a folder with one GGUF file, or a name on the Hugging Face Hub. model=NAME is short for it."""
    revision: str | None = None
    """A branch, tag or commit on the Hub. null: the main branch."""


@dataclass
class FitDataConfig(DataConfig):
    """The text that spans are fitted to, and what part of it holds something to retrieve."""

    passkeys: Annotated[float, Range(0, 1)] = 0.0
    """The share of the texts that are about a number to be found again at their end, so that spans keep retrieval."""


@dataclass
class FitConfig:
    """The configuration of a fit: how far the heads of a model that exists need to look."""

    model: FitModelConfig = field(default_factory=FitModelConfig)
    """The model."""
    data: FitDataConfig = field(default_factory=FitDataConfig)
    """The text. Spans are fitted to train; losses are measured on valid."""
    context: Annotated[int, Range(64, LONG)] = 1024
    """Tokens of a text. Every span starts at it, and a head that stays there counts as one that sees everything."""
    steps: Size = 300
    """Texts to read, one a step. It ends before if the spans have settled."""
    budget: Annotated[float, Range(0, 1, above=True)] | None = 0.2
    """The share of keys and values to keep at `context`. null: where `penalty` leads."""
    penalty: Annotated[float, Range(0, 1e6)] | None = None
    """What all keys and values cost, in nats per token. It takes the place of `budget`."""
    sinks: SizeOrNone = 4
    """The first tokens of a text, which every later one sees."""
    ramp: Size = 32
    """Tokens over which a head's soft mask falls from 1 to 0, beyond its span."""
    rate: Annotated[float, Range(0, 1, above=True)] = 0.03
    """The fraction of `context` that a span moves at most in a step. It falls to 0 over the second half."""
    held_out: Size = 20_000
    """Tokens that losses are measured on, before and after."""
    seed: Annotated[int, Range(0, LONG)] = 1
    """Seed of the texts."""
    out: Path | None = None
    """Folder of the results. null: fits/MODEL-BUDGET. The same command resumes there."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    """Where to compute."""

    def validate(self) -> None:
        """Check the values, and how they go together.

        Raises:
            UserError: One is not allowed.
        """
        check(self)
        self.data.validate()
        self.hardware.validate()
        if self.penalty is not None:
            self.budget = None
        if self.budget is None and self.penalty is None:
            raise UserError("budget=null needs a penalty=NUMBER; give one of the two")
        if self.ramp + self.sinks >= self.context:
            raise UserError(f"ramp={self.ramp} and sinks={self.sinks} leave nothing of context={self.context} to fit")
        if self.hardware.processes > 1:
            raise UserError(f"hardware.processes={self.hardware.processes}, but one process fits; leave it at 1")
