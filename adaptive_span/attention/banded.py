"""Attention that costs what each head looks at, in PyTorch: heads of similar span share a band of keys and values.

On a CPU with a compiler `tiles` computes the same, from the same projections and with the same dropout.

Queries are taken a tile at a time. Of a tile's products with the keys that any of its queries sees, those outside the
band, a parallelogram, are masked; they are few, since tiles are short where spans are.

Besides the letters of `adaptive_span.attention`: n = B·h matrices of a group, t tiles of m queries each, and
W = S + m − 1 positions that a tile sees.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from adaptive_span.attention import Attended, Context, HeadGroup, MemoryKeysValues, Projected, SpanGeometry, tiles
from adaptive_span.attention.head_groups import by_groups, group_heads, out_of_groups, tile_size
from adaptive_span.attention.own_types import OwnTypes, uncompiled


@uncompiled
def attend(
    context: Context,
    position_embedding: Tensor,
    geometry: SpanGeometry,
    dropout: float = 0.0,
    memory: MemoryKeysValues | None = None,
) -> Attended:
    """Compute attention band by band. See `adaptive_span.attention.Attend`."""
    groups = group_heads(geometry.bounds)
    position_embedding = position_embedding[:, -geometry.longest :].to(context.dtype)  # (D, S)
    log_mask = geometry.log_mask()  # (H, S)
    log_mask = None if log_mask is None else log_mask.to(context.dtype)
    if tiles.run_on(position_embedding.device, context.dtype):
        spans = tiles.exact_spans(geometry.bounds, log_mask)
        projected = context.project([HeadGroup(heads, max(spans[head] for head in heads)) for heads, _ in groups])
        masks = draw_masks(dropout, groups, projected, memory) if dropout else []
        output = tiles.attend(
            [heads for heads, _ in groups], spans, projected, position_embedding, log_mask, dropout, memory, masks
        )
        return Attended(output, [each.keys_values for each in projected])
    projected = context.project(groups)
    log_mask = None if log_mask is None else by_groups(log_mask, 0, groups)
    memory_kv = (None, None) if memory is None else tuple(by_groups(x, 0, groups).to(context.dtype) for x in memory)
    key_biases = [each.key_bias for each in projected]
    tensors = [tensor for each in projected for tensor in each[:2]]
    output = BandedAttentionFunction.apply(
        dropout, key_biases, position_embedding, log_mask, *memory_kv, *tensors
    )  # (B, M, H, D)
    return Attended(out_of_groups(output, 2, groups), [each.keys_values for each in projected])


class BandedAttentionFunction(OwnTypes):
    """Compute all groups of a layer, with the gradients written out: a view by distance has no cheap derivative."""

    @staticmethod
    def forward(
        ctx: Any,
        dropout: float,
        key_biases: Sequence[Tensor | None],  # of each group (B, T)
        position_embedding: Tensor,  # (D, S) of the longest group
        log_mask: Tensor | None,  # (H, S)
        memory_key: Tensor | None,  # (H, D, N)
        memory_value: Tensor | None,  # (H, N, D)
        *projected: Tensor,  # of each group queries (B, M, h, D), scaled, and keys and values (B, T, h, 2, D)
    ) -> Tensor:
        """Return the output, (B, M, H, D), with heads in the order of the groups."""
        outputs, saved = [], []
        ctx.key_biases = key_biases
        for _, group in banded_groups(projected, key_biases, position_embedding, log_mask, memory_key, memory_value):
            output, weights, keep = group.forward(dropout)
            outputs.append(output)
            saved += [weights, keep]
        ctx.save_for_backward(position_embedding, log_mask, memory_key, memory_value, *projected, *saved)
        return torch.cat(outputs, dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all inputs, of that of the output, (B, M, H, D)."""
        position_embedding, log_mask, memory_key, memory_value, *rest = ctx.saved_tensors
        projected, saved = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        grad_position_embedding = torch.zeros_like(position_embedding)
        grad_mask, grad_memory_key, grad_memory_value = (
            None if x is None else torch.zeros_like(x) for x in (log_mask, memory_key, memory_value)
        )
        grad_projected: list[Tensor] = []
        groups = banded_groups(projected, ctx.key_biases, position_embedding, log_mask, memory_key, memory_value)
        for (heads, group), weights, keep in zip(groups, saved[::2], saved[1::2], strict=True):
            part = group.backward(grad[:, :, heads], weights, keep)
            grad_projected += [part.query, part.keys_values]
            grad_position_embedding[:, -group.span :] += part.position_embedding
            if grad_mask is not None and part.log_mask is not None:
                grad_mask[heads, -group.span :] = part.log_mask
            if grad_memory_key is not None and grad_memory_value is not None and part.memory is not None:
                grad_memory_key[heads], grad_memory_value[heads] = part.memory
        return None, None, grad_position_embedding, grad_mask, grad_memory_key, grad_memory_value, *grad_projected


@dataclass
class BandedGradients:
    """Hold the gradients of a group, each in the shape of what it is the gradient of."""

    query: Tensor
    position_embedding: Tensor
    log_mask: Tensor | None
    memory: MemoryKeysValues | None
    keys_values: Tensor


@dataclass
class BandedGroup:
    """Compute a group's share of a layer: n = B·h matrices, one per row and head, cut into t tiles of m queries."""

    query: Tensor  # (B, M, h, D)
    keys_values: Tensor  # (B, T, h, 2, D)
    key_bias: Tensor | None  # (B, T)
    position_embedding: Tensor  # (D, S), or (D, 0)
    log_mask: Tensor | None  # (h, S)
    memory: MemoryKeysValues | None  # (n, D, N), (n, N, D)

    def __post_init__(self) -> None:
        self.batch, self.block, self.heads, self.size = self.query.shape
        self.span = self.keys_values.size(1) - self.block
        self.tile = min(tile_size(self.span), self.block)
        self.tiles = -(-self.block // self.tile)
        self.spare = self.tiles * self.tile - self.block  # rows of the last tile that no query is in
        self.width = self.span + self.tile - 1
        self.shape = (self.batch, self.heads)
        self.q = self.in_tiles(self.query)  # (n, t·m, D)
        self.key, self.value = self.keys_values.unbind(3)  # (B, T, h, D)

    def forward(self, dropout: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the output, (B, M, h, D), and for `backward` weights and dropout's factors, (n·t, m, W + N) both."""
        scores = self.scores()
        if self.memory is not None:
            to_memory = torch.bmm(self.q, self.memory[0])  # (n, t·m, N)
            scores = torch.cat([scores, to_memory.view(*scores.shape[:2], -1)], dim=2)
        weights = scores.softmax(2)
        keep = draw_factors(weights, dropout) if dropout else None
        dropped = weights if keep is None else weights * keep
        output = torch.bmm(dropped[:, :, : self.width], self.windows(self.value))  # (n·t, m, D)
        output = output.view(self.q.shape)
        if self.memory is not None:
            output.baddbmm_(self.to_memory(dropped), self.memory[1])
        return self.out_of_tiles(output), weights, keep

    def backward(self, grad: Tensor, weights: Tensor, keep: Tensor | None) -> BandedGradients:
        """Return the gradients of all that `forward` read, of that of its output, (B, M, h, D)."""
        q, g = self.by_tile(self.q), self.by_tile(self.in_tiles(grad))  # (n·t, m, D)
        dropped = weights if keep is None else weights * keep  # (n·t, m, W + N)
        grad_weights = torch.bmm(g, self.windows(self.value).transpose(1, 2))
        if self.memory is not None:
            of_memory = torch.bmm(g.view(self.q.shape), self.memory[1].transpose(1, 2))
            grad_weights = torch.cat([grad_weights, of_memory.view(*g.shape[:2], -1)], dim=2)
        if keep is not None:
            grad_weights *= keep
        grad_scores = torch._softmax_backward_data(grad_weights, weights, 2, weights.dtype)
        seen = grad_scores[:, :, : self.width]  # (n·t, m, W)
        grad_position_scores = by_distance(seen, self.span).reshape(*self.q.shape[:2], self.span)  # (n, t·m, S)
        grad_q = torch.bmm(seen, self.windows(self.key)).view(self.q.shape)
        grad_position = self.position_embedding.new_zeros(self.position_embedding.shape)
        if self.position_embedding.size(1):
            grad_q += torch.matmul(grad_position_scores, self.position_embedding.t())
            grad_position = torch.mm(self.q.flatten(0, 1).t(), grad_position_scores.flatten(0, 1))
        grad_memory = None
        if self.memory is not None:
            of_memory = self.to_memory(grad_scores)
            grad_q.baddbmm_(of_memory, self.memory[0].transpose(1, 2))
            grad_memory = (
                torch.bmm(self.q.transpose(1, 2), of_memory).unflatten(0, self.shape).sum(0),
                torch.bmm(self.to_memory(dropped).transpose(1, 2), g.view(self.q.shape))
                .unflatten(0, self.shape)
                .sum(0),
            )
        return BandedGradients(
            query=self.out_of_tiles(grad_q),
            position_embedding=grad_position,
            log_mask=None if self.log_mask is None else grad_position_scores.unflatten(0, self.shape).sum((0, 2)),
            memory=grad_memory,
            keys_values=self.out_of_windows(
                torch.bmm(seen.transpose(1, 2), q), torch.bmm(dropped[:, :, : self.width].transpose(1, 2), g)
            ),
        )

    def scores(self) -> Tensor:
        """Return q·k + q·p_d + log m inside the band, −inf outside, (n·t, m, W)."""
        scores = self.q.new_full((len(self.q) * self.tiles, self.tile, self.width), float("-inf"))
        band = by_distance(scores, self.span).unflatten(0, (*self.shape, self.tiles))  # (B, h, t, m, S)
        log_mask = 0 if self.log_mask is None else self.log_mask[:, None, None]
        if self.position_embedding.size(1):
            torch.add(torch.matmul(self.q, self.position_embedding).view(band.shape), log_mask, out=band)
        else:
            band[:] = log_mask
        if self.key_bias is not None:
            tiles = F.pad(self.key_bias, (0, self.spare)).unfold(1, self.width, self.tile)[:, : self.tiles]  # (B, t, W)
            scores.view(*self.shape, self.tiles, self.tile, self.width).add_(tiles[:, None, :, None])
        return scores.baddbmm_(self.by_tile(self.q), self.windows(self.key).transpose(1, 2))

    def in_tiles(self, rows: Tensor) -> Tensor:
        """Cut (B, M, h, D) into (n, t·m, D), with zeros after the last query."""
        rows = rows.transpose(1, 2)
        if self.spare:
            rows = F.pad(rows, (0, 0, 0, self.spare))
        return rows.reshape(-1, self.tiles * self.tile, self.size).contiguous()  # a lone head's would stay a view

    def by_tile(self, rows: Tensor) -> Tensor:
        """View (n, t·m, D) as (n·t, m, D)."""
        return rows.view(-1, self.tile, self.size)

    def out_of_tiles(self, rows: Tensor) -> Tensor:
        """View (n, t·m, D) as (B, M, h, D)."""
        whole: Tensor = rows[:, : self.block].unflatten(0, self.shape)
        return whole.transpose(1, 2)

    def to_memory(self, weights: Tensor) -> Tensor:
        """Return the part of weights or scores, (n·t, m, W + N), that belongs to memory, (n, t·m, N)."""
        return weights[:, :, self.width :].reshape(*self.q.shape[:2], -1)

    def windows(self, keys: Tensor) -> Tensor:
        """Return what the queries of each tile see of (B, T, h, D), as (n·t, W, D)."""
        if self.spare:
            keys = F.pad(keys, (0, 0, 0, 0, 0, self.spare))
        tiles = keys.unfold(1, self.width, self.tile)[:, : self.tiles]  # (B, t, h, D, W)
        return tiles.permute(0, 2, 1, 4, 3).flatten(0, 2)

    def out_of_windows(self, *keys_values: Tensor) -> Tensor:
        """Add up the gradients of keys and of values, (n·t, W, D) each, where tiles overlap: (B, T, h, 2, D)."""
        length = self.span + self.tiles * self.tile
        total = self.q.new_zeros(self.batch, length, self.heads, 2, self.size)
        for kind, grad in enumerate(keys_values):
            tiles = grad.unflatten(0, (*self.shape, self.tiles)).permute(2, 0, 3, 1, 4)  # (t, B, W, h, D)
            for tile, part in enumerate(tiles):
                total[:, tile * self.tile : tile * self.tile + self.width, :, kind] += part
        return total[:, : self.span + self.block]


def banded_groups(
    projected: Sequence[Tensor],
    key_biases: Sequence[Tensor | None],
    position_embedding: Tensor,
    log_mask: Tensor | None,
    memory_key: Tensor | None,
    memory_value: Tensor | None,
) -> Iterator[tuple[slice, BandedGroup]]:
    """Yield the place of each group's heads among all, and the group."""
    first = 0
    for query, keys_values, key_bias in zip(projected[::2], projected[1::2], key_biases, strict=True):
        heads, span = slice(first, first + query.size(2)), keys_values.size(1) - query.size(1)
        memory = None
        if memory_key is not None and memory_value is not None:
            memory = (each_row(memory_key[heads], len(query)), each_row(memory_value[heads], len(query)))
        mask = None if log_mask is None else log_mask[heads, -span:]
        yield heads, BandedGroup(query, keys_values, key_bias, position_embedding[:, -span:], mask, memory)
        first = heads.stop


def draw_masks(
    dropout: float,
    groups: Sequence[HeadGroup],
    projected: Sequence[Projected],
    memory: MemoryKeysValues | None,
) -> list[tiles.DropoutMask]:
    """Draw what `BandedAttentionFunction` draws for each group, and return which weights stay."""
    masks = []
    for (_, span), (query, _, _) in zip(groups, projected, strict=True):
        batch, block, heads, _ = query.shape
        tile = min(tile_size(span), block)
        width = span + tile - 1 + (0 if memory is None else memory[0].size(2))
        drawn = torch.rand(batch, heads, -(-block // tile), tile, width, dtype=draw_type(query), device=query.device)
        masks.append(tiles.DropoutMask(drawn >= dropout, span))
    return masks


def draw_type(like: Tensor) -> torch.dtype:
    """Return at least fp32: 16 bits hold too few numbers to keep dropout's rate."""
    return torch.promote_types(like.dtype, torch.float32)


def draw_factors(weights: Tensor, dropout: float) -> Tensor:
    """Draw what dropout multiplies weights by: 0, or 1 / (1 − rate)."""
    drawn = torch.rand_like(weights, dtype=draw_type(weights))
    return (drawn >= dropout).to(weights.dtype).div_(1 - dropout)


def each_row(memory: Tensor, batch: int) -> Tensor:
    """Return (h, …) for every row of the batch alike, (n, …)."""
    return memory.expand(batch, *memory.shape).flatten(0, 1)


def by_distance(products: Tensor, span: int) -> Tensor:
    """View (n·t, m, ≥ W) by absolute position as (n·t, m, S) by distance: its row r starts at column r."""
    n, tile, _ = products.shape
    batch_stride, row_stride, _ = products.stride()
    return products.as_strided((n, tile, span), (batch_stride, row_stride + 1, 1), products.storage_offset())
