"""Define the keys of `optimizer`: how gradients become updates."""

from dataclasses import dataclass, field
from typing import Annotated

from adaptive_span.config.checks import FP32_MAX, MISSING, OneOf, Range, check
from adaptive_span.config.kinds import Probability, Rate
from adaptive_span.config.registry import OPTIMIZERS
from adaptive_span.errors import UserError


@dataclass
class OptimizerConfig:
    """Say how gradients become updates."""

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
