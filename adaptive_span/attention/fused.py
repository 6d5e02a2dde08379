"""Attention that costs what each head looks at, in Triton: weights are made where they are used, and never stored.

Heads of similar span share a launch. In it each goes only as far as its own span, which is read on the device. Memory
holds one group's products of queries and position vectors, (M, B, h, S): matrix products make them and take their
gradients. For the backward pass, which `fused_kernels.backward` derives, queries, keys, values, outputs and one number
per query are kept. No sum is made by atomic additions, so that the same step gives the same bits.

Shapes are in the letters of `adaptive_span.attention`. In here positions come before rows, (M, B, …), as they lie on a
GPU.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adaptive_span.attention import Attended, Context, MemoryKeysValues, SpanGeometry
from adaptive_span.attention import fused_kernels as kernels
from adaptive_span.attention.head_groups import group_heads, order_of, order_on
from adaptive_span.attention.own_types import OwnTypes, uncompiled


@uncompiled
def attend(
    context: Context,
    position_embedding: Tensor,
    geometry: SpanGeometry,
    dropout: float = 0.0,
    memory: MemoryKeysValues | None = None,
) -> Attended:
    """Compute attention in Triton. See `adaptive_span.attention.Attend`."""
    groups = group_heads(geometry.bounds)
    projected = context.project(groups)
    position_embedding = position_embedding[:, -geometry.longest :].to(context.dtype)  # (D, S)
    memory_kv = (None, None) if memory is None else tuple(x.to(context.dtype) for x in memory)
    words = random_words(projected[0].query, len(geometry.bounds)) if dropout else None
    order = order_on(position_embedding.device, order_of(groups))
    tensors = [tensor for each in projected for tensor in each[:2]]
    key_biases = [each.key_bias for each in projected]
    output = FusedAttentionFunction.apply(
        geometry.ramp, dropout, words, order, key_biases, position_embedding, geometry.spans, geometry.given_mask,
        *memory_kv, *tensors
    )  # fmt: skip
    return Attended(output, [each.keys_values for each in projected])


def random_words(query: Tensor, heads: int) -> Tensor:
    """Draw two random words per query, (2, B, H, M), from torch's generator on the device.

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


# Where no head of a launch sees more than SHORT tokens, in one loop over tiles that begin where its reach does. Many
# small programs of a warp hide how long memory takes better than few large ones. Measured on an H200 too.
SHORT = 128  # tokens
SHORT_TILES = {
    ("bf16", 64): {"forward_kernel": (16, 16, 1, 2), "query_kernel": (16, 32, 1, 2)},
    ("bf16", 128): {"forward_kernel": (16, 16, 1, 2), "query_kernel": (16, 16, 1, 2)},
}


# What `tl.dot` makes of fp32 numbers: "tf32x3" are three products on tensor cores that keep nearly all digits, and take
# a quarter of the time of "ieee", whose products are no tensor core's.
PRODUCTS = {"bf16": "ieee", "tf32": "tf32", "fp32": "tf32x3"}
ROWS_APART = 4  # programs that share the rows of the batch in the gradients of persistent memory


def constants(kernel: str, size: int, dtype: torch.dtype, span: int) -> dict[str, Any]:
    """Return what a kernel is compiled with, for heads of `size` of which the longest sees `span` tokens."""
    kind = "bf16" if dtype.itemsize == 2 else "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "fp32"
    key = kind, 64 if size <= 64 else 128
    short = span <= SHORT and kernel in SHORT_TILES.get(key, {})
    queries, keys, warps, stages = (SHORT_TILES if short else TILES)[key][kernel]
    padded = max(16, 1 << (size - 1).bit_length())  # of which a matrix product can be made
    shape = {"SIZE": size, "PADDED": padded, "QUERIES": queries, "PRECISION": PRODUCTS[kind]}
    shape |= {} if keys is None else {"KEYS": keys}
    shape |= {"SHORT": short} if kernel in ("forward_kernel", "query_kernel") else {}
    return shape | {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


class FusedAttentionFunction(OwnTypes):
    """Compute all groups of a layer, with the gradients written out."""

    @staticmethod
    def forward(
        ctx: Any,
        ramp: int,
        dropout: float,
        words: Tensor | None,  # (2, B, H, M), of dropout
        order: Tensor,  # (H,) numbers of the heads, group by group
        key_biases: Sequence[Tensor | None],  # of each group (B, T)
        position_embedding: Tensor,  # (D, S) of the longest group
        spans: Tensor | None,  # (H,)
        given_mask: Tensor | None,  # (H, S)
        memory_key: Tensor | None,  # (H, D, N)
        memory_value: Tensor | None,  # (H, N, D)
        *projected: Tensor,  # of each group queries (B, M, h, D), scaled, and keys and values (B, T, h, 2, D)
    ) -> Tensor:
        """Return the output, (B, M, H, D), with heads in their own order."""
        spans = None if spans is None else spans.float()
        if memory_key is not None and memory_value is not None:
            memory_key, memory_value = memory_key.contiguous(), memory_value.contiguous()
        layer = FusedLayer(ramp, dropout, words, order, position_embedding, spans, given_mask, memory_key, memory_value)
        groups = list(fused_groups(projected, key_biases))
        block, batch, _, size = groups[0].query.shape
        output = projected[0].new_empty(block, batch, len(order), size)
        lse = output.new_empty(batch, len(order), block, dtype=torch.float32)
        for group in groups:
            layer.forward(group, output, lse)
        ctx.constants, ctx.key_biases = (ramp, dropout), key_biases
        saved = [tensor.transpose(0, 1) for group in groups for tensor in (group.query, group.key_value)]
        inputs = (words, order, position_embedding, spans, given_mask, memory_key, memory_value)
        ctx.save_for_backward(*inputs, output, lse, *saved)
        return output.transpose(0, 1)  # (B, M, H, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs, of that of the output, (B, M, H, D)."""
        *inputs, output, lse = (saved := ctx.saved_tensors)[:9]
        groups = list(fused_groups(saved[9:], ctx.key_biases))
        back = FusedBackward(FusedLayer(*ctx.constants, *inputs), grad.transpose(0, 1).contiguous(), output, lse)
        grad_projected = [part.transpose(0, 1) for group in groups for part in back.group(group)]
        return (
            *(None,) * 5,
            back.grad_position_embedding,
            back.span_gradient(),
            back.grad_given_mask,
            *back.memory_gradients(),
            *grad_projected,
        )


@dataclass
class FusedGroup:
    """Hold what heads that share a launch attend with; the tensors are contiguous."""

    first: int  # place of its first head in the layer's order
    query: Tensor  # (M, B, h, D)
    key_value: Tensor  # (T, B, h, 2, D)
    key_bias: Tensor | None  # (B, T)

    @property
    def span(self) -> int:
        """Return S, in tokens."""
        return len(self.key_value) - len(self.query)

    @property
    def rows(self) -> Tensor:
        """Return the queries one behind another, (M·B·h, D)."""
        return self.query.flatten(0, 2)


def fused_groups(projected: Sequence[Tensor], key_biases: Sequence[Tensor | None]) -> Iterator[FusedGroup]:
    """Yield each group of a layer, with the positions before the rows of the batch, as they are in training."""
    first = 0
    for query, key_value, key_bias in zip(projected[::2], projected[1::2], key_biases, strict=True):
        yield FusedGroup(first, query.transpose(0, 1).contiguous(), key_value.transpose(0, 1).contiguous(), key_bias)
        first += query.size(2)


@dataclass
class FusedLayer:
    """Hold what all groups of a layer share, and launch kernels on it."""

    ramp: int
    dropout: float
    words: Tensor | None  # (2, B, H, M), of dropout
    order: Tensor  # (H,)
    position_embedding: Tensor  # (D, S) of the longest group
    spans: Tensor | None  # (H,)
    given_mask: Tensor | None  # (H, S)
    memory_key: Tensor | None  # (H, D, N)
    memory_value: Tensor | None  # (H, N, D)

    def __post_init__(self) -> None:
        self.memory_size = 0 if self.memory_key is None else self.memory_key.size(2)

    def position_scores(self, group: FusedGroup) -> Tensor:
        """Return q·p_d of all queries of a group, (M, B, h, S), and with it what is given to add to the scores."""
        shape = (*group.query.shape[:3], group.span)
        if self.position_embedding.size(1):
            scores = torch.mm(group.rows, self.position_embedding[:, -group.span :]).view(shape)
        else:
            scores = group.query.new_zeros(shape)
        if self.given_mask is not None:
            scores += self.given_mask[:, -group.span :].index_select(0, self.heads(group))
        if group.key_bias is not None:
            windows = group.key_bias.unfold(1, group.span, 1)[:, : len(scores)]  # (B, M, S)
            scores += windows.transpose(0, 1)[:, :, None]
        return scores

    def heads(self, group: FusedGroup) -> Tensor:
        """Return the numbers of a group's heads, (h,)."""
        return self.order[group.first : group.first + group.query.size(2)]

    def forward(self, group: FusedGroup, output: Tensor, lse: Tensor) -> None:
        """Fill the group's part of `output`, (M, B, H, D), and `lse`, (B, H, M)."""
        block, batch, heads, _ = group.query.shape
        self.launch(
            kernels.forward_kernel, "QUERIES", block, (heads, batch), position_scores=self.position_scores(group),
            output=output, lse=lse, **self.memory, **self.context(group),
        )  # fmt: skip

    @property
    def memory(self) -> dict[str, Any]:
        """Return the arguments of the kernels that look at persistent memory."""
        return {
            "memory_key": self.memory_key, "memory_value": self.memory_value, "memory_size": self.memory_size
        }  # fmt: skip

    def shared(self, group: FusedGroup) -> dict[str, Any]:
        """Return the arguments of the kernels that compute weights."""
        block, batch, _, _ = group.query.shape
        heads = len(self.order)
        return {
            "query": group.query, "first": group.first, "order": self.order, "heads": heads, "block": block,
            "words": self.words,
            "plane": batch * heads * block,  # words before the second one of each query
            "threshold": round(self.dropout * 2**32) - 2**31,  # of a random int32: what lies below is dropped
            "scale": 1 / (1 - self.dropout),
        }  # fmt: skip

    def context(self, group: FusedGroup) -> dict[str, Any]:
        """Return these and the arguments of the kernels that look at a group's keys and values."""
        return {
            "key_value": group.key_value, "span": group.span, "ramp": self.ramp, "spans": self.spans,
            **self.shared(group),
        }  # fmt: skip

    def launch(self, kernel: Any, kind: str, length: int, others: tuple[int, ...], **arguments: Any) -> None:
        """Launch one program for each tile of `length` QUERIES or KEYS, times `others`."""
        size, dtype = self.position_embedding.size(0), self.position_embedding.dtype
        compiled_with = constants(kernel.__name__, size, dtype, arguments.get("span", 0))
        with torch.cuda.device_of(self.position_embedding):
            kernel[(-(-length // compiled_with[kind]), *others)](**compiled_with, **arguments)


class FusedBackward:
    """Compute the gradients of a layer, group by group. `fused_kernels` derives them."""

    def __init__(self, layer: FusedLayer, grad: Tensor, output: Tensor, lse: Tensor):
        self.layer = layer
        delta = torch.empty_like(lse)  # (B, H, M)
        layer.launch(
            kernels.delta_kernel, "QUERIES", lse.numel(), (), grad=grad, output=output, delta=delta,
            batch=lse.size(0), heads=lse.size(1), block=lse.size(2), total=lse.numel(),
        )  # fmt: skip
        self.given = {"grad": grad, "lse": lse, "delta": delta}
        self.grad_position_embedding = torch.zeros_like(layer.position_embedding)  # (D, S)
        self.grad_spans = None if layer.spans is None else torch.empty_like(lse)  # each query's part, (B, H, M)
        self.grad_given_mask = None if layer.given_mask is None else torch.zeros_like(layer.given_mask)  # (H, S)
        batch, heads, _ = lse.shape
        apart, size = min(ROWS_APART, batch), layer.position_embedding.size(0)
        self.grad_memory = lse.new_empty(2, apart, heads, layer.memory_size, size)  # of keys and of values

    def group(self, group: FusedGroup) -> tuple[Tensor, Tensor]:
        """Return the gradients of a group's queries, (M, B, h, D), and of its keys and values, (T, B, h, 2, D).

        The group's part of the gradient of the position embedding is added to what is there.
        """
        layer = self.layer
        block, batch, heads, _ = group.query.shape
        position_scores, shared = layer.position_scores(group), {**self.given, **layer.context(group)}
        grad_query, grad_key_value = torch.empty_like(group.query), torch.empty_like(group.key_value)
        layer.launch(
            kernels.key_value_kernel, "KEYS", block + group.span, (heads, batch), position_scores=position_scores,
            grad_key_value=grad_key_value, **shared,
        )  # fmt: skip
        layer.launch(  # after it: this one writes the gradient of the scores over the scores
            kernels.query_kernel, "QUERIES", block, (heads, batch), position_scores=position_scores,
            grad_query=grad_query, grad_spans=self.grad_spans, **layer.memory, **shared,
        )  # fmt: skip
        if layer.memory_size:
            layer.launch(
                kernels.memory_kernel, "KEYS", layer.memory_size, (heads, self.grad_memory.size(1)), batch=batch,
                grad_memory_key=self.grad_memory[0], grad_memory_value=self.grad_memory[1],
                **self.given, **layer.memory, **layer.shared(group),
            )  # fmt: skip
        if self.grad_given_mask is not None:
            part = position_scores.sum((0, 1), dtype=self.grad_given_mask.dtype)  # (h, S)
            self.grad_given_mask[:, -group.span :].index_copy_(0, layer.heads(group).long(), part)
        if not layer.position_embedding.size(1):
            return grad_query, grad_key_value
        grad_position_scores = position_scores.flatten(0, 2)  # (M·B·h, S)
        grad_query.flatten(0, 2).addmm_(grad_position_scores, layer.position_embedding[:, -group.span :].t())
        self.grad_position_embedding[:, -group.span :].addmm_(group.rows.t(), grad_position_scores)
        return grad_query, grad_key_value

    def span_gradient(self) -> Tensor | None:
        """Return the gradient of the spans, (H,)."""
        return None if self.grad_spans is None else self.grad_spans.sum((0, 2))

    def memory_gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of persistent keys, (H, D, N), and values, (H, N, D)."""
        if not self.layer.memory_size:
            return None, None
        key, value = self.grad_memory.sum(1).to(self.layer.position_embedding.dtype)
        return key.transpose(1, 2), value
