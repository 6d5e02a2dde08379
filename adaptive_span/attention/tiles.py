"""Banded attention on a CPU, in C++: a tile of queries goes from scores to output while it is in the cache.

PyTorch's operations pass over a layer's weights once each, and what they keep for the backward pass is large. Here
a tile's weights are computed again from the logarithm of their sum. A head's own span counts, not its group's longest.

Besides the letters of `adaptive_span.attention`: L is the layer's longest span, P the number of parts of the batch.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adaptive_span.attention import MemoryKeysValues, Projected
from adaptive_span.attention.own_types import OwnTypes
from adaptive_span.hardware import cpp

SOURCE = Path(__file__).with_name("tiles.cpp")
TYPES = {torch.float32: "float", torch.float64: "double"}
MOST_PARTS = 8  # of a batch, which have gradients of their own that add up in one order whatever the threads


class Head(ctypes.Structure):
    """Describe a head to `tiles.cpp`, which explains the fields."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "keys_values", "grad_query", "grad_keys_values")),
        *((name, ctypes.c_void_p) for name in ("key_bias", "grad_position", "keep")),
        *((name, ctypes.c_int64) for name in ("keep_rows", "keep_columns", "index", "group", "positions", "span")),
    ]


class Layer(ctypes.Structure):
    """Describe a layer to `tiles.cpp`, which explains the fields."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("heads", "position", "position_along")),
        *((name, ctypes.c_void_p) for name in ("log_mask", "memory_key", "memory_value")),
        *((name, ctypes.c_void_p) for name in ("memory_key_along", "memory_value_across")),
        *((name, ctypes.c_void_p) for name in ("output", "log_sum", "grad", "grad_position", "grad_log_mask")),
        *((name, ctypes.c_void_p) for name in ("grad_memory_key", "grad_memory_value")),
        *((name, ctypes.c_int64) for name in ("batch", "block", "num_heads", "size", "longest", "memory", "parts")),
        ("position_stride", ctypes.c_int64),
        ("scale", ctypes.c_double),
    ]


class DropoutMask(NamedTuple):
    """Hold which of a group's weights dropout keeps, as `banded` draws them."""

    keep: Tensor  # (B, h, tiles, rows, columns), where a row's first weight is one column further than the row before's
    span: int  # tokens: the distance of a row's first weight


@dataclass(frozen=True)
class LayerShape:
    """Hold what the host knows of a layer."""

    groups: Sequence[Sequence[int]]  # heads
    spans: Sequence[int]  # of each head, in tokens
    mask_spans: Sequence[int]  # of each group's mask
    scale: float  # of the weights that dropout keeps
    key_biases: Sequence[Tensor | None]  # of each group (B, T)

    def heads(
        self, projected: Sequence[Tensor], masks: Sequence[Tensor], grads: Sequence[Tensor] = ()
    ) -> ctypes.Array[Head]:
        """Return the description of each head, the longest span first."""
        described = []
        for number, heads in enumerate(self.groups):
            pair = slice(2 * number, 2 * number + 2)  # queries (B, M, h, D), keys and values (B, T, h, 2, D)
            for place, index in enumerate(heads):
                given, grad = ([x.select(2, place).data_ptr() for x in tensors[pair]] for tensors in (projected, grads))
                head = Head(*given, *grad, key_bias=_address(self.key_biases[number]))
                head.index, head.span = index, self.spans[index]
                head.group, head.positions = len(heads), projected[2 * number + 1].size(1)
                if masks:
                    head.keep = masks[number].select(1, place).data_ptr() + self.mask_spans[number] - head.span
                    head.keep_rows, head.keep_columns = masks[number].shape[3:]
                described.append(head)
        return (Head * len(described))(*sorted(described, key=lambda head: -head.span))

    def layer(
        self, heads: ctypes.Array[Head], block: int, log_sum: Tensor, constants: Sequence[Tensor | None]
    ) -> Layer:
        """Return the description of the layer, but for what a pass writes or gets besides."""
        position_embedding, log_mask, memory_key, memory_value = constants
        assert position_embedding is not None
        longest = position_embedding.size(1) or (max(self.spans) if log_mask is None else log_mask.size(1))
        return Layer(
            heads=ctypes.addressof(heads), log_mask=_address(log_mask),
            position=position_embedding.data_ptr() if position_embedding.size(1) else None,
            memory_key=_address(memory_key), memory_value=_address(memory_value), log_sum=log_sum.data_ptr(),
            batch=len(log_sum), block=block, num_heads=len(heads), size=position_embedding.size(0),
            longest=longest, position_stride=position_embedding.stride(0),
            memory=0 if memory_key is None else memory_key.size(2),
            scale=self.scale,
        )  # fmt: skip


def run_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether these kernels compute there, in that type."""
    return device.type == "cpu" and dtype in TYPES and cpp.library(SOURCE) is not None


def exact_spans(bounds: Sequence[int], log_mask: Tensor | None) -> list[int]:
    """Return how far each head sees, in tokens: on a CPU the spans that `bounds` bound can be read."""
    if log_mask is None:
        return list(bounds)
    farthest = log_mask.size(1) - (log_mask > float("-inf")).int().argmax(1)  # all where a span is not a number
    return list(map(min, bounds, farthest.tolist()))


def attend(
    groups: Sequence[Sequence[int]],
    spans: Sequence[int],
    projected: Sequence[Projected],
    position_embedding: Tensor,
    log_mask: Tensor | None,
    dropout: float,
    memory: MemoryKeysValues | None,
    masks: Sequence[DropoutMask],
) -> Tensor:
    """Compute attention tile by tile.

    Args:
        groups: the heads of each group of `projected`.
        spans: tokens that each head sees.
        projected: of each group queries, keys and values.
        position_embedding: (D, L).
        log_mask: log m(d) of each head, (H, L), or None.
        dropout: the rate.
        memory: persistent keys (H, D, N) and values (H, N, D), or None.
        masks: of each group which weights dropout keeps; empty without dropout.

    Returns:
        (B, M, H, D), with heads in their own order.
    """
    if memory is not None:
        memory = memory[0].to(position_embedding.dtype), memory[1].to(position_embedding.dtype)
    tensors = [tensor for each in projected for tensor in each[:2]]
    key_biases = [None if bias is None else bias.contiguous() for _, _, bias in projected]
    shape = LayerShape(groups, spans, [mask.span for mask in masks], 1 / (1 - dropout), key_biases)
    output: Tensor = TiledAttentionFunction.apply(
        shape, [mask.keep for mask in masks], position_embedding, log_mask, *(memory or (None, None)), *tensors
    )
    return output


class TiledAttentionFunction(OwnTypes):
    """Compute all heads of a layer in C++, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        shape: LayerShape,
        masks: Sequence[Tensor],  # of each group what dropout keeps, or none
        position_embedding: Tensor,  # (D, L), whose rows may lie apart; or (D, 0)
        log_mask: Tensor | None,  # (H, L)
        memory_key: Tensor | None,  # (H, D, N)
        memory_value: Tensor | None,  # (H, N, D)
        *projected: Tensor,  # of each group queries (B, M, h, D), scaled, and keys and values (B, T, h, 2, D)
    ) -> Tensor:
        """Return the output, (B, M, H, D)."""
        projected = tuple(tensor.contiguous() for tensor in projected)
        others = [None if x is None else x.contiguous() for x in (log_mask, memory_key, memory_value)]
        constants = [position_embedding, *others]
        batch, block, _, size = projected[0].shape
        output = position_embedding.new_empty(batch, block, len(shape.spans), size)
        log_sum = position_embedding.new_empty(batch, len(shape.spans), block)
        heads = shape.heads(projected, masks)
        layer = shape.layer(heads, block, log_sum, constants)
        layer.output, layer.parts = output.data_ptr(), batch
        _call("forward", position_embedding.dtype, layer)
        ctx.shape = shape
        ctx.save_for_backward(log_sum, *constants, *projected, *masks)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs, of that of the output, (B, M, H, D)."""
        shape: LayerShape = ctx.shape
        log_sum, *rest = ctx.saved_tensors
        pairs = 2 * len(shape.groups)
        constants, projected, masks = rest[:4], rest[4 : 4 + pairs], rest[4 + pairs :]
        position_embedding, *others = constants
        grad, parts = grad.contiguous(), min(len(grad), MOST_PARTS)
        grad_position_embedding = position_embedding.new_zeros(position_embedding.shape)
        size = position_embedding.size(0)
        each_position = position_embedding.new_empty(parts * size * sum(shape.spans))
        each_other = [None if x is None else x.new_zeros(parts, *x.shape) for x in others]
        grad_projected = [torch.empty_like(tensor) for tensor in projected]
        heads, start = shape.heads(projected, masks, grad_projected), each_position.data_ptr()
        for head in heads:
            head.grad_position = start
            start += parts * size * head.span * position_embedding.itemsize
        layer = shape.layer(heads, grad.size(1), log_sum, constants)
        position_along = position_embedding.t().contiguous()
        layer.position_along = position_along.data_ptr()
        across = [None if x is None else x.transpose(1, 2).contiguous() for x in others[1:]]
        layer.memory_key_along, layer.memory_value_across = map(_address, across)
        layer.grad, layer.parts, layer.grad_position = grad.data_ptr(), parts, grad_position_embedding.data_ptr()
        layer.grad_log_mask, layer.grad_memory_key, layer.grad_memory_value = map(_address, each_other)
        _call("backward", position_embedding.dtype, layer)
        grad_others = (None if x is None else x.sum(0) for x in each_other)
        return None, None, grad_position_embedding, *grad_others, *grad_projected


def _call(which: str, dtype: torch.dtype, layer: Layer) -> None:
    getattr(cpp.library(SOURCE), f"{which}_{TYPES[dtype]}")(ctypes.byref(layer))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
