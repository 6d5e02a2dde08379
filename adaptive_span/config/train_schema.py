"""Define the keys of `train`: how long and on how much."""

from dataclasses import dataclass
from typing import Annotated

from adaptive_span.config.checks import FP32_MAX, MISSING, OneOf, Range, check
from adaptive_span.config.kinds import Count, CountOrNone, Path, Size
from adaptive_span.config.registry import SCHEDULES, decays
from adaptive_span.errors import UserError

FREEZES = ("none", "weights")


@dataclass
class TrainConfig:
    """Say how long and on how much to train."""

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
