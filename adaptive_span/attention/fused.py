"""Attention that costs what each head looks at, in Triton: weights are made where they are used, and never stored.

Heads of similar span share a launch, and in it each goes only as far as its own span, read on the device. What is in
memory for the time of one group are the products of queries and position vectors, (B, h, M, S), which matrix products
make and take the gradients of; what is kept for the backward pass are queries, keys, values, outputs and one number a
query. No sum is made by atomic additions, so that the same step gives the same bits.

B batch, H heads, h heads of a group, M block, D head size, S span of the group's longest head, N persistent vectors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adaptive_span.attention import fused_kernels as kernels
from adaptive_span.attention.banded import group_heads
from adaptive_span.attention.context import Context, by_groups, out_of_groups
from adaptive_span.own_types import OwnTypes


@torch.compiler.disable  # nothing in it could be fused, and its sizes change with the spans
def attend(
    query: Tensor,
    context: Context,
    positions: Tensor,
    spans: Tensor | None,
    ramp: int,
    limits: Sequence[int],
    dropout: float = 0.0,
    memory: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """See `adaptive_span.attention`."""
    block, groups = query.size(2), group_heads(limits)
    keys_values = context.keys_values([(heads, span + block) for heads, span in groups])
    query = by_groups(query * query.size(3) ** -0.5, 1, groups).to(keys_values[0].dtype).contiguous()
    positions = positions[:, -max(limits) :].to(query.dtype)
    spans = None if spans is None else by_groups(spans, 0, groups)
    kept = (None, None) if memory is None else tuple(by_groups(x, 0, groups).to(query.dtype) for x in memory)
    words = by_groups(random_words(query), 2, groups) if dropout else None
    sizes = [len(heads) for heads, _ in groups]
    output = Fused.apply(sizes, ramp, dropout, words, query, positions, spans, *kept, *keys_values)
    return out_of_groups(output, 1, groups)


def random_words(query: Tensor) -> Tensor:
    """Two words a query, (2, B, H, M), of torch's own generator on the device: dropout's mask is a function of them, so
    that it comes again in the backward pass, and again where activation checkpointing restores the generator."""
    return torch.randint(-(2**31), 2**31, (2, *query.shape[:3]), dtype=torch.int32, device=query.device)


# For heads of up to that size: queries and keys of a tile, warps, stages of its pipeline. Chosen so that registers
# hardly spill on sm_80 and sm_90, and that tensor cores have the 64 rows which Hopper's multiply at once. In fp32 they
# have no part, since TF32 would not keep its digits.
TILES = {
    (torch.bfloat16, 64): {
        "forward_kernel": (64, 64, 4, 3),
        "delta_kernel": (64, None, 4, 1),
        "query_kernel": (64, 32, 4, 2),
        "key_value_kernel": (64, 64, 4, 2),
        "memory_kernel": (64, 64, 4, 2),
    },
    (torch.bfloat16, 128): {
        "forward_kernel": (64, 32, 4, 2),
        "delta_kernel": (64, None, 4, 1),
        "query_kernel": (64, 32, 4, 2),
        "key_value_kernel": (64, 32, 4, 2),
        "memory_kernel": (64, 32, 4, 2),
    },
    (torch.float32, 64): {
        "forward_kernel": (32, 32, 4, 1),
        "delta_kernel": (32, None, 4, 1),
        "query_kernel": (32, 32, 4, 1),
        "key_value_kernel": (32, 32, 8, 1),
        "memory_kernel": (32, 32, 8, 1),
    },
    (torch.float32, 128): {
        "forward_kernel": (32, 32, 8, 1),
        "delta_kernel": (32, None, 4, 1),
        "query_kernel": (16, 32, 8, 1),
        "key_value_kernel": (16, 32, 8, 1),
        "memory_kernel": (32, 32, 8, 1),
    },
}


def tiles(kernel: str, size: int, dtype: torch.dtype) -> dict[str, int]:
    """The constants that a kernel is compiled with."""
    queries, keys, warps, stages = TILES[dtype, 64 if size <= 64 else 128][kernel]
    padded = max(16, 1 << (size - 1).bit_length())  # of which a matrix product can be made
    shape = {"SIZE": size, "PADDED": padded, "QUERIES": queries} | ({} if keys is None else {"KEYS": keys})
    return shape | {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


class Fused(OwnTypes):
    """All groups of a layer, with the gradients written out."""

    @staticmethod
    def forward(
        ctx: Any,
        sizes: Sequence[int],  # heads of each group
        ramp: int,
        dropout: float,
        words: Tensor | None,  # (2, B, H, M), of dropout
        query: Tensor,  # (B, H, M, D), scaled
        positions: Tensor,  # (D, S) of the longest group
        spans: Tensor | None,  # (H,)
        memory_key: Tensor | None,  # (H, D, N)
        memory_value: Tensor | None,  # (H, N, D)
        *keys_values: Tensor,  # of each group (B, 2, h, D, T)
    ) -> Tensor:
        spans = None if spans is None else spans.float()
        if memory_key is not None and memory_value is not None:
            memory_key, memory_value = memory_key.contiguous(), memory_value.contiguous()
        layer = Layer(ramp, dropout, words, query, positions, spans, memory_key, memory_value)
        output = torch.empty_like(query)
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        for heads, both in parts(sizes, keys_values):
            layer.forward(heads, both, output, lse)
        ctx.layer, ctx.sizes = (ramp, dropout), sizes
        ctx.save_for_backward(words, query, positions, spans, memory_key, memory_value, output, lse, *keys_values)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        *inputs, output, lse = saved[:8]
        layer = Layer(*ctx.layer, *inputs)
        back = Backward(layer, grad.contiguous(), output, lse)
        grad_keys_values = [back.group(heads, both) for heads, both in parts(ctx.sizes, saved[8:])]
        memory = back.memory() if layer.memory_key is not None else (None, None)
        return None, None, None, None, back.grad_query, back.grad_positions, back.grad_spans, *memory, *grad_keys_values


def parts(sizes: Sequence[int], keys_values: Sequence[Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Each group's heads, and its keys and values."""
    first = 0
    for size, both in zip(sizes, keys_values, strict=True):
        yield slice(first, first + size), both
        first += size


@dataclass
class Layer:
    """What all groups of a layer share, and how a kernel is launched on it."""

    ramp: int
    dropout: float
    words: Tensor | None
    query: Tensor
    positions: Tensor
    spans: Tensor | None
    memory_key: Tensor | None
    memory_value: Tensor | None

    def __post_init__(self) -> None:
        self.batch, self.heads, self.block, self.size = self.query.shape
        self.memory_size = 0 if self.memory_key is None else self.memory_key.size(2)

    def near(self, heads: slice, span: int) -> Tensor:
        """(B, h, M, S)"""
        return torch.matmul(self.query[:, heads], self.positions[:, -span:])

    def forward(self, heads: slice, keys_values: Tensor, output: Tensor, lse: Tensor) -> None:
        """Fill the group's part of `output` and `lse`."""
        span = keys_values.size(4) - self.block
        self.launch(
            kernels.forward_kernel, "QUERIES", self.block, (heads.stop - heads.start, self.batch),
            near=self.near(heads, span), memory_key=self.memory_key, memory_value=self.memory_value,
            output=output, lse=lse, memory_size=self.memory_size, **self.context(heads, keys_values),
        )  # fmt: skip

    @property
    def shared(self) -> dict[str, Any]:
        """Arguments of the kernels that compute weights."""
        return {
            "query": self.query, "heads": self.heads, "block": self.block, "words": self.words,
            "plane": self.batch * self.heads * self.block,  # words before the second one of each query
            "threshold": round(self.dropout * 2**32) - 2**31,  # of a random int32: what lies below is dropped
            "scale": 1 / (1 - self.dropout),
        }  # fmt: skip

    def context(self, heads: slice, keys_values: Tensor) -> dict[str, Any]:
        """And of those that look at a group's keys and values."""
        key, value = keys_values.unbind(1)
        strides = dict(zip(("stride_b", "stride_h", "stride_d", "stride_j"), key.stride(), strict=True))
        group = {"key": key, "value": value, "first": heads.start, "span": key.size(3) - self.block}
        return {**self.shared, **group, **strides, "ramp": self.ramp, "spans": self.spans}

    def launch(self, kernel: Any, kind: str, length: int, others: tuple[int, ...], **arguments: Any) -> None:
        """One program for each tile of `length` QUERIES or KEYS, times `others`."""
        tile = tiles(kernel.__name__, self.size, self.query.dtype)
        with torch.cuda.device_of(self.query):
            kernel[(-(-length // tile[kind]), *others)](**tile, **arguments)


class Backward:
    """The gradients of a layer, group by group."""

    def __init__(self, layer: Layer, grad: Tensor, output: Tensor, lse: Tensor):
        self.layer = layer
        delta = torch.empty_like(lse)  # (B, H, M)
        layer.launch(
            kernels.delta_kernel, "QUERIES", lse.numel(), (), grad=grad, output=output, delta=delta, total=lse.numel()
        )
        self.given = {"grad": grad, "lse": lse, "delta": delta}
        self.grad_query = torch.empty_like(layer.query)
        self.grad_positions = torch.zeros_like(layer.positions)
        self.grad_spans = None if layer.spans is None else torch.zeros_like(layer.spans)
        self.ramps = None if layer.spans is None else slopes(layer.spans, layer.ramp)

    def group(self, heads: slice, keys_values: Tensor) -> Tensor:
        """Fill in the group's part of the gradients; those of its keys and values."""
        layer, length = self.layer, keys_values.size(4)
        grid = (heads.stop - heads.start, layer.batch)
        near = layer.near(heads, length - layer.block)
        shared = {"near": near, **self.given, **layer.context(heads, keys_values)}
        grads = torch.empty_like(keys_values, memory_format=torch.contiguous_format)
        grad_key, grad_value = grads.unbind(1)
        names = ("grad_stride_b", "grad_stride_h", "grad_stride_d")
        strides = dict(zip(names, grad_key.stride(), strict=False))
        layer.launch(
            kernels.key_value_kernel, "KEYS", length, grid, grad_key=grad_key, grad_value=grad_value, **strides,
            **shared,
        )  # fmt: skip
        layer.launch(  # after it: this one writes the gradient of `near` over `near`
            kernels.query_kernel, "QUERIES", layer.block, grid, grad_query=self.grad_query, memory_key=layer.memory_key,
            memory_value=layer.memory_value, memory_size=layer.memory_size, **shared,
        )  # fmt: skip
        self.through_near(heads, near)
        return grads

    def through_near(self, heads: slice, grad_near: Tensor) -> None:
        """What the gradient of `near`, (B, h, M, S), says of queries, position vectors and spans."""
        layer, span = self.layer, grad_near.size(3)
        self.grad_query[:, heads] += torch.matmul(grad_near, layer.positions[:, -span:].t())
        flat = layer.query[:, heads].flatten(0, 2)
        self.grad_positions[:, -span:] += torch.mm(flat.t(), grad_near.flatten(0, 2))
        if self.ramps is not None and self.grad_spans is not None:
            distance, slope = (x[heads] for x in self.ramps)
            self.grad_spans[heads] = span_gradient(distance, slope, grad_near)

    def memory(self) -> tuple[Tensor, Tensor]:
        layer = self.layer
        assert layer.memory_key is not None
        assert layer.memory_value is not None
        grads = torch.empty_like(layer.memory_key), torch.empty_like(layer.memory_value)
        layer.launch(
            kernels.memory_kernel, "KEYS", layer.memory_size, (layer.heads,), memory_key=layer.memory_key,
            memory_value=layer.memory_value, grad_memory_key=grads[0], grad_memory_value=grads[1],
            batch=layer.batch, memory_size=layer.memory_size, **self.given, **layer.shared,
        )  # fmt: skip
        return grads


def slopes(spans: Tensor, ramp: int) -> tuple[Tensor, Tensor]:
    """The distances at which each head feels its span, those of the ramp, and d log m / dz = 1 / (R m) there, 0 for one
    that is not on it after all. (H, R + 1) both"""
    farthest = (ramp + 1 + spans).floor()
    distance = farthest[:, None] - torch.arange(ramp + 1, device=spans.device)
    height = (ramp + 1 + spans[:, None] - distance) / ramp
    slope = 1 / (ramp * (height.clamp(0, 1) + 1e-20))
    return distance.long(), slope.where((height <= 1) & (distance >= 1), 0.0)


def span_gradient(distance: Tensor, slope: Tensor, grad_near: Tensor) -> Tensor:
    """(h,), from the gradient of scores by distance, (B, h, M, S)."""
    span = grad_near.size(3)
    column = (span - distance).clamp(0, span - 1)
    felt = grad_near.gather(3, column[None, :, None].expand(*grad_near.shape[:3], -1))  # (B, h, M, R + 1)
    return (felt.sum((0, 2), dtype=torch.float32) * slope.where(distance <= span, 0.0)).sum(1)
