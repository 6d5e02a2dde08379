"""Autograd functions that choose their types themselves."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class OwnTypes(torch.autograd.Function):
    """A base whose `forward` and `backward` run without autocast, whatever surrounds them.

    Autocast picks other types on each kind of device. Inside a function with a backward pass of its own, a type that
    changes between two operations is a mistake. `torch.amp.custom_fwd` would do the same for one kind of device only.
    """

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        for name in ("forward", "backward"):
            if name in cls.__dict__:
                setattr(cls, name, staticmethod(_without_autocast(getattr(cls, name))))


def _without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def alone(ctx: Any, *inputs: Any) -> Any:
        device = next(value.device for value in inputs if isinstance(value, Tensor))
        with torch.autocast(device.type, enabled=False):
            return function(ctx, *inputs)

    return alone
