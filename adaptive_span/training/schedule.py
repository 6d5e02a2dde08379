"""The learning rate of each update: one function per schedule, chosen by `train.schedule`."""

import math
from collections.abc import Callable

from adaptive_span.config.registry import SCHEDULES
from adaptive_span.config.train_schema import TrainConfig

FINETUNE_FACTOR = 0.1

Schedule = Callable[[int, float, TrainConfig], float]


def register_schedule(name: str, decays: bool = False) -> Callable[[Schedule], Schedule]:
    """Return a decorator that makes a function the schedule `train.schedule=NAME`.

    The function takes the number of the update, counted from 1, the peak rate `optimizer.lr`, and the configuration of
    the training, and returns the rate of that update. It must depend on nothing else: a resumed run asks it again.

    Args:
        name: What `train.schedule` calls it.
        decays: Whether it depends on `train.steps`, so that a run of more steps is another run.
    """
    return SCHEDULES.register(name, decays=decays)


def learning_rate(step: int, peak: float, train: TrainConfig) -> float:
    """Return the learning rate of update `step`, counted from 1."""
    rate: float = SCHEDULES[train.schedule](step, peak, train)
    return rate


def constant(step: int, peak: float, train: TrainConfig) -> float:
    """Rise linearly to the peak over `train.warmup_steps`, and fall to a tenth of it after `train.steps`.

    The schedule of the papers' byte-level recipes (arXiv 1905.07799, section 4).
    """
    rate = peak * _warmth(step, train)
    return rate * FINETUNE_FACTOR if step > train.steps else rate


def linear(step: int, peak: float, train: TrainConfig) -> float:
    """Rise linearly to the peak, and fall from there to `train.final_rate` of it on a straight line."""
    return peak * _warmth(step, train) * _between(_done(step, train.warmup_steps, train), train)


def cosine(step: int, peak: float, train: TrainConfig) -> float:
    """Rise linearly to the peak, and fall to `train.final_rate` of it on half a cosine (arXiv 1608.03983, eq. 5)."""
    done = _done(step, train.warmup_steps, train)
    return peak * _warmth(step, train) * _between((1 - math.cos(math.pi * done)) / 2, train)


def inverse_sqrt(step: int, peak: float, train: TrainConfig) -> float:
    """Rise linearly to the peak, and fall with the root of the steps (arXiv 1706.03762, section 5.3)."""
    return peak * _warmth(step, train) * math.sqrt(min(1.0, max(1, train.warmup_steps) / step))


def warmup_stable_decay(step: int, peak: float, train: TrainConfig) -> float:
    """Rise linearly to the peak, stay, and fall on a straight line in `train.decay_steps` (arXiv 2404.06395)."""
    return peak * _warmth(step, train) * _between(_done(step, train.steps - train.falling_steps, train), train)


def _warmth(step: int, train: TrainConfig) -> float:
    return min(1.0, step / train.warmup_steps) if train.warmup_steps else 1.0


def _done(step: int, first: int, train: TrainConfig) -> float:
    """Return how much of the steps after `first` lies behind, from 0 to 1: the last step is 1."""
    return min(1.0, max(0, step - first) / max(1, train.steps - first))


def _between(fallen: float, train: TrainConfig) -> float:
    """Return the factor of the rate, by how much of the fall from 1 to `train.final_rate` lies behind."""
    return 1 - fallen * (1 - train.final_rate)
