"""Matrices as precise as products read them, cast once per step instead of once per product."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_span.attention.own_types import OwnTypes
from adaptive_span.model.persistent_memory import PersistentMemory
from adaptive_span.model.transformer import Transformer

WITH_MATRICES = (nn.Linear, PersistentMemory, Transformer)  # of a Transformer itself: its position embedding


@contextmanager
def low_precision(model: Transformer, precision: str) -> Iterator[None]:
    """Let the model's products read bf16 copies of its weights, while gradients reach the weights.

    The copies are as old as the context. Backward passes belong into it: checkpointed blocks read weights once more.

    Args:
        model: whose parameters are replaced by copies within the context.
        precision: `bf16`; with any other nothing is copied.
    """
    if precision != "bf16":
        yield
        return
    weights = [
        (module._parameters, name)
        for module in model.modules()
        if isinstance(module, WITH_MATRICES)
        for name, weight in module._parameters.items()
        if weight is not None and weight.dim() > 1
    ]
    exact = [parameters[name] for parameters, name in weights]
    try:
        for (parameters, name), low in zip(weights, _Cast.apply(torch.bfloat16, *exact), strict=True):
            parameters[name] = low
        yield
    finally:
        for (parameters, name), weight in zip(weights, exact, strict=True):
            parameters[name] = weight


class _Cast(OwnTypes):
    """Copy many tensors to another precision in one launch, and their gradients back in another one.

    Nothing is saved, so that each slice of a batch may have a backward pass of its own through it.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        """Return the copies."""
        ctx.set_materialize_grads(False)
        ctx.dtypes = [weight.dtype for weight in weights]
        copies = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(copies, weights)
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients in the precision of the weights."""
        present = [None if grad is None else grad.contiguous() for grad in grads]  # one that is not slows down all
        exact = [
            None if grad is None else torch.empty_like(grad, dtype=dtype)
            for grad, dtype in zip(present, ctx.dtypes, strict=True)
        ]
        torch._foreach_copy_(
            [grad for grad in exact if grad is not None], [grad for grad in present if grad is not None]
        )
        return None, *exact
