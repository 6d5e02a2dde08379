"""Attention that costs what each head looks at, in Triton: weights are made where they are used, and never stored.

Heads of similar span share a launch, and in it each goes only as far as its own span, read on the device. What is in
memory for the time of one group are the products of queries and position vectors, (M, B, h, S), which matrix products
make and take the gradients of; what is kept for the backward pass are queries, keys, values, outputs and one number a
query. No sum is made by atomic additions, so that the same step gives the same bits.

B batch, H heads, h heads of a group, M block, D head size, S span of the group's longest head, T = S + M positions,
N persistent vectors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adaptive_span.attention import fused_kernels as kernels
from adaptive_span.attention.banded import group_heads
from adaptive_span.attention.context import Context, order_on
from adaptive_span.attention.own_types import OwnTypes


@torch.compiler.disable  # nothing in it could be fused, and its sizes change with the spans
def attend(
    context: Context,
    positions: Tensor,
    spans: Tensor | None,
    ramp: int,
    limits: Sequence[int],
    dropout: float = 0.0,
    memory: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """See `adaptive_span.attention`."""
    groups = group_heads(limits)
    projected = [tensor for group in context.project(groups) for tensor in group]
    positions = positions[:, -max(limits) :].to(context.dtype)
    kept = (None, None) if memory is None else tuple(x.to(context.dtype) for x in memory)
    words = random_words(projected[0], len(limits)) if dropout else None
    order = order_on(positions.device, tuple(head for heads, _ in groups for head in heads))
    return FusedAttention.apply(ramp, dropout, words, order, positions, spans, *kept, *projected)


def random_words(query: Tensor, heads: int) -> Tensor:
    """Return two random words a query, (2, B, H, M), of torch's generator on the device.

    Dropout's mask is a function of them, so that it comes again in the backward pass, and again where activation
    checkpointing restores the generator.
    """
    shape = (2, query.size(0), heads, query.size(1))
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, device=query.device)


# By how numbers are multiplied, for heads of up to that size: queries and keys of a tile, warps, stages of its
# pipeline. The fastest of those measured on an H200 that 99 KiB of shared memory are enough for; the query kernel's in
# fp32, and those of memory and delta, were not measured.
TILES = {
    ("bf16", 64): {
        "forward_kernel": (64, 16, 4, 4),
        "delta_kernel": (64, None, 4, 1),
        "query_kernel": (64, 32, 4, 3),
        "key_value_kernel": (32, 64, 4, 3),
        "memory_kernel": (64, 64, 4, 2),
    },
    ("bf16", 128): {
        "forward_kernel": (64, 32, 4, 3),
        "delta_kernel": (64, None, 4, 1),
        "query_kernel": (64, 32, 4, 3),
        "key_value_kernel": (32, 64, 4, 3),
        "memory_kernel": (64, 32, 4, 2),
    },
    ("tf32", 64): {
        "forward_kernel": (32, 32, 4, 2),
        "delta_kernel": (64, None, 4, 1),
        "query_kernel": (32, 32, 4, 2),
        "key_value_kernel": (32, 32, 4, 2),
        "memory_kernel": (32, 32, 4, 1),
    },
    ("tf32", 128): {
        "forward_kernel": (32, 32, 4, 2),
        "delta_kernel": (64, None, 4, 1),
        "query_kernel": (32, 32, 4, 2),
        "key_value_kernel": (32, 32, 4, 2),
        "memory_kernel": (32, 32, 4, 1),
    },
    ("fp32", 64): {
        "forward_kernel": (32, 32, 4, 2),
        "delta_kernel": (32, None, 4, 1),
        "query_kernel": (32, 32, 4, 2),
        "key_value_kernel": (32, 32, 4, 2),
        "memory_kernel": (32, 32, 8, 1),
    },
    ("fp32", 128): {
        "forward_kernel": (32, 32, 4, 2),
        "delta_kernel": (32, None, 4, 1),
        "query_kernel": (32, 32, 4, 1),
        "key_value_kernel": (32, 32, 4, 2),
        "memory_kernel": (32, 32, 8, 1),
    },
}


# What `tl.dot` makes of fp32 numbers: "tf32x3" are three products on tensor cores that keep nearly all digits, and take
# a quarter of the time of "ieee", whose products are no tensor core's.
PRODUCTS = {"bf16": "ieee", "tf32": "tf32", "fp32": "tf32x3"}
ROWS_APART = 4  # programs that share the rows of the batch in the gradients of persistent memory


def constants(kernel: str, size: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return what a kernel is compiled with."""
    kind = "bf16" if dtype.itemsize == 2 else "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "fp32"
    queries, keys, warps, stages = TILES[kind, 64 if size <= 64 else 128][kernel]
    padded = max(16, 1 << (size - 1).bit_length())  # of which a matrix product can be made
    shape = {"SIZE": size, "PADDED": padded, "QUERIES": queries, "PRECISION": PRODUCTS[kind]}
    shape |= {} if keys is None else {"KEYS": keys}
    return shape | {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


class FusedAttention(OwnTypes):
    """Compute all groups of a layer, with the gradients written out."""

    @staticmethod
    def forward(
        ctx: Any,
        ramp: int,
        dropout: float,
        words: Tensor | None,  # (2, B, H, M), of dropout
        order: Tensor,  # (H,) numbers of the heads, group by group
        positions: Tensor,  # (D, S) of the longest group
        spans: Tensor | None,  # (H,)
        memory_key: Tensor | None,  # (H, D, N)
        memory_value: Tensor | None,  # (H, N, D)
        *projected: Tensor,  # of each group queries (B, M, h, D), scaled, and keys and values (B, T, h, 2, D)
    ) -> Tensor:
        spans = None if spans is None else spans.float()
        if memory_key is not None and memory_value is not None:
            memory_key, memory_value = memory_key.contiguous(), memory_value.contiguous()
        layer = Layer(ramp, dropout, words, order, positions, spans, memory_key, memory_value)
        groups = list(parts(projected))
        block, batch, _, size = groups[0].query.shape
        output = projected[0].new_empty(block, batch, len(order), size)
        lse = output.new_empty(batch, len(order), block, dtype=torch.float32)
        for group in groups:
            layer.forward(group, output, lse)
        ctx.constants = (ramp, dropout)
        saved = [tensor.transpose(0, 1) for group in groups for tensor in (group.query, group.key_value)]
        ctx.save_for_backward(words, order, positions, spans, memory_key, memory_value, output, lse, *saved)
        return output.transpose(0, 1)  # (B, M, H, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, output, lse = (saved := ctx.saved_tensors)[:8]
        groups = list(parts(saved[8:]))
        back = Backward(Layer(*ctx.constants, *inputs), grad.transpose(0, 1).contiguous(), output, lse)
        grad_projected = [found.transpose(0, 1) for group in groups for found in back.group(group)]
        return (
            None,
            None,
            None,
            None,
            back.grad_positions,
            back.span_gradient(),
            *back.memory_gradients(),
            *grad_projected,
        )


@dataclass
class Group:
    """Heads that share a launch; its tensors are contiguous."""

    first: int  # place of its first head in the layer's order
    query: Tensor  # (M, B, h, D)
    key_value: Tensor  # (T, B, h, 2, D)

    @property
    def span(self) -> int:
        return len(self.key_value) - len(self.query)

    @property
    def rows(self) -> Tensor:
        """Queries one behind another, (M·B·h, D)."""
        return self.query.flatten(0, 2)


def parts(projected: Sequence[Tensor]) -> Iterator[Group]:
    """Yield each group of a layer, with the positions before the rows of the batch, as they are in training."""
    first = 0
    for query, key_value in zip(projected[::2], projected[1::2], strict=True):
        yield Group(first, query.transpose(0, 1).contiguous(), key_value.transpose(0, 1).contiguous())
        first += query.size(2)


@dataclass
class Layer:
    """What all groups of a layer share, and how a kernel is launched on it."""

    ramp: int
    dropout: float
    words: Tensor | None
    order: Tensor
    positions: Tensor
    spans: Tensor | None
    memory_key: Tensor | None
    memory_value: Tensor | None

    def __post_init__(self) -> None:
        self.memory_size = 0 if self.memory_key is None else self.memory_key.size(2)

    def near(self, group: Group) -> Tensor:
        """(M, B, h, S)"""
        return torch.mm(group.rows, self.positions[:, -group.span :]).unflatten(0, group.query.shape[:3])

    def forward(self, group: Group, output: Tensor, lse: Tensor) -> None:
        """Fill the group's part of `output` and `lse`."""
        block, batch, heads, _ = group.query.shape
        self.launch(
            kernels.forward_kernel, "QUERIES", block, (heads, batch), position_scores=self.near(group), output=output,
            lse=lse, **self.memory, **self.context(group),
        )  # fmt: skip

    @property
    def memory(self) -> dict[str, Any]:
        return {
            "memory_key": self.memory_key, "memory_value": self.memory_value, "memory_size": self.memory_size
        }  # fmt: skip

    def shared(self, group: Group) -> dict[str, Any]:
        """Arguments of the kernels that compute weights."""
        block, batch, _, _ = group.query.shape
        heads = len(self.order)
        return {
            "query": group.query, "first": group.first, "order": self.order, "heads": heads, "block": block,
            "words": self.words,
            "plane": batch * heads * block,  # words before the second one of each query
            "threshold": round(self.dropout * 2**32) - 2**31,  # of a random int32: what lies below is dropped
            "scale": 1 / (1 - self.dropout),
        }  # fmt: skip

    def context(self, group: Group) -> dict[str, Any]:
        """And of those that look at a group's keys and values."""
        return {
            "key_value": group.key_value, "span": group.span, "ramp": self.ramp, "spans": self.spans,
            **self.shared(group),
        }  # fmt: skip

    def launch(self, kernel: Any, kind: str, length: int, others: tuple[int, ...], **arguments: Any) -> None:
        """One program for each tile of `length` QUERIES or KEYS, times `others`."""
        compiled_with = constants(kernel.__name__, self.positions.size(0), self.positions.dtype)
        with torch.cuda.device_of(self.positions):
            kernel[(-(-length // compiled_with[kind]), *others)](**compiled_with, **arguments)


class Backward:
    """The gradients of a layer, group by group."""

    def __init__(self, layer: Layer, grad: Tensor, output: Tensor, lse: Tensor):
        self.layer = layer
        delta = torch.empty_like(lse)  # (B, H, M)
        layer.launch(
            kernels.delta_kernel, "QUERIES", lse.numel(), (), grad=grad, output=output, delta=delta,
            batch=lse.size(0), heads=lse.size(1), block=lse.size(2), total=lse.numel(),
        )  # fmt: skip
        self.given = {"grad": grad, "lse": lse, "delta": delta}
        self.grad_positions = torch.zeros_like(layer.positions)
        self.felt = None if layer.spans is None else torch.empty_like(lse)  # what each query says of its head's span
        batch, heads, _ = lse.shape
        apart, size = min(ROWS_APART, batch), layer.positions.size(0)
        self.of_memory = lse.new_empty(2, apart, heads, layer.memory_size, size)  # of keys and of values

    def group(self, group: Group) -> tuple[Tensor, Tensor]:
        """Return the gradients of a group's queries, and of its keys and values; add to that of position vectors."""
        layer = self.layer
        block, batch, heads, _ = group.query.shape
        near, shared = layer.near(group), {**self.given, **layer.context(group)}
        grad_query, grad_key_value = torch.empty_like(group.query), torch.empty_like(group.key_value)
        layer.launch(
            kernels.key_value_kernel, "KEYS", block + group.span, (heads, batch), position_scores=near,
            grad_key_value=grad_key_value, **shared,
        )  # fmt: skip
        layer.launch(  # after it: this one writes the gradient of `near` over `near`
            kernels.query_kernel, "QUERIES", block, (heads, batch), position_scores=near, grad_query=grad_query,
            grad_spans=self.felt, **layer.memory, **shared,
        )  # fmt: skip
        if layer.memory_size:
            layer.launch(
                kernels.memory_kernel, "KEYS", layer.memory_size, (heads, self.of_memory.size(1)), batch=batch,
                grad_memory_key=self.of_memory[0], grad_memory_value=self.of_memory[1],
                **self.given, **layer.memory, **layer.shared(group),
            )  # fmt: skip
        grad_near = near.flatten(0, 2)  # (M·B·h, S)
        grad_query.flatten(0, 2).addmm_(grad_near, layer.positions[:, -group.span :].t())
        self.grad_positions[:, -group.span :].addmm_(group.rows.t(), grad_near)
        return grad_query, grad_key_value

    def span_gradient(self) -> Tensor | None:
        return None if self.felt is None else self.felt.sum((0, 2))

    def memory_gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """(H, D, N), (H, N, D)"""
        if not self.layer.memory_size:
            return None, None
        key, value = self.of_memory.sum(1).to(self.layer.positions.dtype)
        return key.transpose(1, 2), value
