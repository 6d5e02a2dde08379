"""Autograd functions that choose their types themselves, and functions that torch.compile leaves alone."""

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def uncompiled(function: AnyFunction) -> AnyFunction:
    """Keep `torch.compile` out of a function: nothing in it could be fused, and its sizes change with the spans.

    Torch's decorator imports its compiler, for which a program that compiles nothing would wait more than a second. So
    it is applied when the function is called where the compiler has been imported.
    """
    left_alone: AnyFunction | None = None

    @functools.wraps(function)
    def alone(*inputs: Any, **named: Any) -> Any:
        nonlocal left_alone
        if "torch._dynamo" not in sys.modules:
            return function(*inputs, **named)
        if left_alone is None:
            left_alone = torch.compiler.disable(function)
        return left_alone(*inputs, **named)

    return cast(AnyFunction, alone)


class OwnTypes(torch.autograd.Function):
    """Run `forward` and `backward` of a subclass without autocast, whatever surrounds them.

    Autocast picks other types on each kind of device. Inside a function with a backward pass of its own, a type that
    changes between two operations is a mistake. `torch.amp.custom_fwd` would do the same for one kind of device only.
    """

    if TYPE_CHECKING:  # torch's own has no types

        @classmethod
        def apply(cls, *inputs: Any) -> Any:
            """Run `forward`, and `backward` when a gradient is asked for."""

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
