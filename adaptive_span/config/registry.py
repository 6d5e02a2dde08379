"""What the name of an attention, an optimizer, a schedule or a tracker stands for, and who may add one.

A built-in name is kept with the address of its code, which is imported when it is first needed: a configuration is
checked, and its names are listed, without torch. The modules of `plugins` register what they define by a decorator.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Generic, TypeVar

from adaptive_span.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """Map the values of one key, such as `optimizer.name`, to what they stand for."""

    def __init__(self, key: str):
        self.key = key
        self._targets: dict[str, T | str] = {}
        self._facts: dict[str, dict[str, Any]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __getitem__(self, name: str) -> T:
        """Return what a name stands for. Its module is imported if it was not yet."""
        target = self._targets[name]
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = self._targets[name] = getattr(import_module(module), attribute)
        return target

    def fact(self, name: str, key: str, default: Any = None) -> Any:
        """Return what was said of a name when it was added, which is known without importing anything."""
        return self._facts[name].get(key, default)

    def add(self, name: str, address: str, **facts: Any) -> None:
        """Add a name by the address of its code, like `package.module:function`."""
        self._targets[name], self._facts[name] = address, facts

    def register(self, name: str, **facts: Any) -> Callable[[T], T]:
        """Return a decorator that adds a function or a class under a name.

        Raises:
            UserError: Something else has that name.
        """

        def decorate(made: T) -> T:
            if name in self._targets:
                raise UserError(f"{self.key}={name} is registered twice; give the new one another name")
            self._targets[name], self._facts[name] = made, facts
            return made

        return decorate


ATTENTIONS: Registry[Any] = Registry("model.attention")
ATTENTIONS.add("auto", "adaptive_span.attention.dispatch:automatic", exchangeable=True)
ATTENTIONS.add("dense", "adaptive_span.attention.dense:attend", exchangeable=True)
ATTENTIONS.add("banded", "adaptive_span.attention.banded:attend", exchangeable=True)
ATTENTIONS.add("fused", "adaptive_span.attention.dispatch:fused_or_refused", exchangeable=True)


def is_exchangeable(attention: str) -> bool:
    """Return whether an attention computes what the project's own do, so that one may take the place of another."""
    return attention in ATTENTIONS and bool(ATTENTIONS.fact(attention, "exchangeable"))


OPTIMIZERS: Registry[Any] = Registry("optimizer.name")
OPTIMIZERS.add("adagrad", "adaptive_span.training.optimizer:adagrad", state=1)
OPTIMIZERS.add("adam", "adaptive_span.training.optimizer:adam", state=2)
OPTIMIZERS.add("adamw", "adaptive_span.training.optimizer:adamw", state=2, reads=["betas", "weight_decay", "span_lr"])
OPTIMIZERS.add(
    "muon",
    "adaptive_span.training.optimizer:muon",
    state=1,  # of most weights: its matrices
    reads=["betas", "weight_decay", "span_lr", "adamw_lr", "momentum"],
)
OPTIMIZERS.add("sgd", "adaptive_span.training.optimizer:sgd", reads=["momentum"])

SCHEDULES: Registry[Any] = Registry("train.schedule")
SCHEDULES.add("constant", "adaptive_span.training.schedule:constant")
SCHEDULES.add("linear", "adaptive_span.training.schedule:linear", decays=True)
SCHEDULES.add("cosine", "adaptive_span.training.schedule:cosine", decays=True)
SCHEDULES.add("inverse_sqrt", "adaptive_span.training.schedule:inverse_sqrt")
SCHEDULES.add("warmup_stable_decay", "adaptive_span.training.schedule:warmup_stable_decay", decays=True)


def decays(schedule: str) -> bool:
    """Return whether a schedule depends on how many steps there will be."""
    return schedule in SCHEDULES and bool(SCHEDULES.fact(schedule, "decays"))


TRACKERS: Registry[Any] = Registry("tracking.name")
TRACKERS.add("wandb", "adaptive_span.reporting.wandb_service:WandbService")
TRACKERS.add("tensorboard", "adaptive_span.reporting.tensorboard_service:TensorboardService")
TRACKERS.add("none", "adaptive_span.reporting.tracking:Service")
