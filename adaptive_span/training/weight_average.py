"""Average the weights over the updates of a training, beside the weights that are trained."""

import copy
from pathlib import Path

import torch
from torch import Tensor

from adaptive_span.checkpoint import files
from adaptive_span.model.transformer import Transformer
from adaptive_span.storage.stored import lookup

KEY = "average"  # of a checkpoint: tensors by name, as of `model`


class WeightAverage:
    """Keep an exponential moving average of all weights, spans included: a ← d · a + (1 − d) · w after each update.

    d = min(decay, (1 + t) / (10 + t)) after update t: the average forgets the weights that it began with.

    Args:
        model: That is trained, on its device, and not compiled yet. The average begins as its weights.
        decay: d in the long run, above 0 and below 1.

    Source: Polyak and Juditsky, 1992 (the mean of all iterates); arXiv 2411.18704 (this one); the first updates are as
    in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: Transformer, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._averages: list[Tensor] = [*self.model.parameters()]
        self._weights: list[Tensor] = [*model.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update `step`, counted from 1, without a wait for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again at the present weights."""
        torch._foreach_copy_(self._averages, self._weights)


def average_in(state: files.State, model: Transformer, source: Path) -> dict[str, Tensor]:
    """Return the average that a training state holds.

    Args:
        state: The training state.
        model: Whose weights it must fit.
        source: The state's file, for messages.

    Raises:
        UserError: There is none, it does not fit, or it is not finite.
    """
    average: dict[str, Tensor] = lookup(state, KEY, dict[str, Tensor], source)
    where = f"the average of the weights in {source}"
    files.check_fits(model, average, where)
    files.check_finite(average, where)
    return average
