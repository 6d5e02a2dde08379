"""The learning rate of each update: one function per schedule, chosen by `train.schedule`."""

from collections.abc import Callable

from adaptive_span.config.registry import SCHEDULES
from adaptive_span.config.schema import TrainConfig

FINETUNE_FACTOR = 0.1

Schedule = Callable[[int, float, TrainConfig], float]


def register_schedule(name: str) -> Callable[[Schedule], Schedule]:
    """Return a decorator that makes a function the schedule `train.schedule=NAME`.

    The function takes the number of the update, counted from 1, the peak rate `optimizer.lr`, and the configuration of
    the training, and returns the rate of that update. It must depend on nothing else: a resumed run asks it again.
    """
    return SCHEDULES.register(name)


def learning_rate(step: int, peak: float, train: TrainConfig) -> float:
    """Return the learning rate of update `step`, counted from 1."""
    rate: float = SCHEDULES[train.schedule](step, peak, train)
    return rate


def constant(step: int, peak: float, train: TrainConfig) -> float:
    """Rise linearly to the peak over `train.warmup_steps`, and fall to a tenth of it after `train.steps`.

    The schedule of the papers' byte-level recipes (arXiv 1905.07799, section 4).
    """
    rate = peak * min(1.0, step / train.warmup_steps) if train.warmup_steps else peak
    return rate * FINETUNE_FACTOR if step > train.steps else rate
