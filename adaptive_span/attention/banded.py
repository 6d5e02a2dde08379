"""Attention that costs what each head looks at, in PyTorch: heads of similar span share a band of keys and values.

On a CPU with a compiler `tiles` computes the same, from the same projections and with the same dropout.

Queries are taken a tile at a time. Of a tile's products with the keys that any of its queries sees, those outside the
band, a parallelogram, are masked; they are few, since tiles are short where spans are.

B batch, h heads of a group, n = B·h, M block, m tile, D head size, S span of the group's longest head, T = S + M
positions, W = S + m − 1 positions that a tile sees, N persistent vectors.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from adaptive_span.attention import tiles
from adaptive_span.attention.context import Context, Projected, by_groups, out_of_groups
from adaptive_span.attention.context import Group as Heads
from adaptive_span.attention.own_types import OwnTypes
from adaptive_span.attention.span import log_soft_mask

SHORTEST_TILE, LONGEST_TILE = 64, 256  # queries
WASTE = 1.3  # a group's longest head costs at most so many times what its shortest one would cost alone


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
    near = positions[:, -max(limits) :].to(context.dtype)
    log_mask = None if spans is None else log_soft_mask(spans, ramp, max(limits)).to(context.dtype)
    if tiles.run_on(positions.device, context.dtype):
        own = tiles.own_spans(limits, log_mask)
        projected = context.project([(heads, max(own[head] for head in heads)) for heads, _ in groups])
        masks = draw_masks(dropout, groups, projected, memory) if dropout else []
        return tiles.attend([heads for heads, _ in groups], own, projected, near, log_mask, dropout, memory, masks)
    tensors = [tensor for pair in context.project(groups) for tensor in pair]
    log_mask = None if log_mask is None else by_groups(log_mask, 0, groups)
    kept = (None, None) if memory is None else tuple(by_groups(x, 0, groups).to(context.dtype) for x in memory)
    return out_of_groups(Bands.apply(dropout, near, log_mask, *kept, *tensors), 2, groups)


def group_heads(limits: Sequence[int]) -> list[tuple[list[int], int]]:
    """Heads whose limits are close to each other, with the longest of those limits."""
    found: list[tuple[list[int], int]] = []
    shortest = 0
    for limit, alike in groupby(sorted(range(len(limits)), key=limits.__getitem__), key=limits.__getitem__):
        heads = list(alike)
        if found and limit + tile_size(limit) <= WASTE * (shortest + tile_size(shortest)):
            heads = found.pop()[0] + heads
        else:
            shortest = limit
        found.append((heads, limit))
    return found


def tile_size(span: int) -> int:
    """Queries of a tile: more of them mean fewer calls, and more products outside the band."""
    tile = SHORTEST_TILE
    while tile < LONGEST_TILE and 4 * tile < span:
        tile *= 2
    return tile


class Bands(OwnTypes):
    """All groups of a layer, with the gradients written out: a view by distance has no cheap derivative of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        dropout: float,
        positions: Tensor,  # (D, S) of the longest group
        log_mask: Tensor | None,  # (H, S)
        memory_key: Tensor | None,  # (H, D, N)
        memory_value: Tensor | None,  # (H, N, D)
        *projected: Tensor,  # of each group queries (B, M, h, D), scaled, and keys and values (B, T, h, 2, D)
    ) -> Tensor:
        outputs, saved = [], []
        for _, group in parts(projected, positions, log_mask, memory_key, memory_value):
            output, *kept = group.forward(dropout)
            outputs.append(output)
            saved += kept
        ctx.save_for_backward(positions, log_mask, memory_key, memory_value, *projected, *saved)
        return torch.cat(outputs, dim=2)  # (B, M, H, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        positions, log_mask, memory_key, memory_value, *rest = ctx.saved_tensors
        projected, saved = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        grad_positions = torch.zeros_like(positions)
        grad_mask, grad_memory_key, grad_memory_value = (
            None if x is None else torch.zeros_like(x) for x in (log_mask, memory_key, memory_value)
        )
        grad_projected: list[Tensor] = []
        groups = parts(projected, positions, log_mask, memory_key, memory_value)
        for (heads, group), weights, keep in zip(groups, saved[::2], saved[1::2], strict=True):
            found = group.backward(grad[:, :, heads], weights, keep)
            grad_projected += [found.query, found.keys_values]
            grad_positions[:, -group.span :] += found.positions
            if grad_mask is not None and found.log_mask is not None:
                grad_mask[heads, -group.span :] = found.log_mask
            if grad_memory_key is not None and grad_memory_value is not None and found.memory is not None:
                grad_memory_key[heads], grad_memory_value[heads] = found.memory
        return None, grad_positions, grad_mask, grad_memory_key, grad_memory_value, *grad_projected


@dataclass
class Gradients:
    query: Tensor
    positions: Tensor
    log_mask: Tensor | None
    memory: tuple[Tensor, Tensor] | None
    keys_values: Tensor


@dataclass
class Group:
    """One group's share of a layer: n = B·h heads and rows as so many matrices, cut into t tiles of m queries."""

    query: Tensor  # (B, M, h, D)
    keys_values: Tensor  # (B, T, h, 2, D)
    positions: Tensor  # (D, S)
    log_mask: Tensor | None  # (h, S)
    memory: tuple[Tensor, Tensor] | None  # (n, D, N), (n, N, D)

    def __post_init__(self) -> None:
        self.batch, self.block, self.heads, self.size = self.query.shape
        self.span = self.positions.size(1)
        self.tile = min(tile_size(self.span), self.block)
        self.tiles = -(-self.block // self.tile)
        self.spare = self.tiles * self.tile - self.block  # rows of the last tile that no query is in
        self.width = self.span + self.tile - 1
        self.shape = (self.batch, self.heads)
        self.q = self.in_tiles(self.query)  # (n, t·m, D)
        self.key, self.value = self.keys_values.unbind(3)  # (B, T, h, D)

    def forward(self, dropout: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """The output (B, M, h, D); and for `backward` the weights and what dropout kept of them, (n·t, m, W + N)."""
        scores = self.scores()
        if self.memory is not None:
            to_memory = torch.bmm(self.q, self.memory[0])  # (n, t·m, N)
            scores = torch.cat([scores, to_memory.view(*scores.shape[:2], -1)], dim=2)
        weights = scores.softmax(2)
        keep = kept(weights, dropout) if dropout else None
        dropped = weights if keep is None else weights * keep
        output = torch.bmm(dropped[:, :, : self.width], self.windows(self.value))  # (n·t, m, D)
        output = output.view(self.q.shape)
        if self.memory is not None:
            output.baddbmm_(self.to_memory(dropped), self.memory[1])
        return self.out_of_tiles(output), weights, keep

    def backward(self, grad: Tensor, weights: Tensor, keep: Tensor | None) -> Gradients:
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
        grad_near = by_distance(seen, self.span).reshape(*self.q.shape[:2], self.span)  # (n, t·m, S)
        grad_q = torch.bmm(seen, self.windows(self.key)).view(self.q.shape)
        grad_q += torch.matmul(grad_near, self.positions.t())
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
        return Gradients(
            query=self.out_of_tiles(grad_q),
            positions=torch.mm(self.q.flatten(0, 1).t(), grad_near.flatten(0, 1)),
            log_mask=None if self.log_mask is None else grad_near.unflatten(0, self.shape).sum((0, 2)),
            memory=grad_memory,
            keys_values=self.out_of_windows(
                torch.bmm(seen.transpose(1, 2), q), torch.bmm(dropped[:, :, : self.width].transpose(1, 2), g)
            ),
        )

    def scores(self) -> Tensor:
        """(q·k + q·p_d) + log m inside the band, −inf outside: (n·t, m, W)."""
        near = torch.matmul(self.q, self.positions)  # (n, t·m, S), by distance
        scores = self.q.new_full((len(self.q) * self.tiles, self.tile, self.width), float("-inf"))
        band = by_distance(scores, self.span).unflatten(0, (*self.shape, self.tiles))  # (B, h, t, m, S)
        near = near.view(band.shape)
        if self.log_mask is None:
            band.copy_(near)
        else:
            torch.add(near, self.log_mask[:, None, None], out=band)
        return scores.baddbmm_(self.by_tile(self.q), self.windows(self.key).transpose(1, 2))

    def in_tiles(self, rows: Tensor) -> Tensor:
        """(B, M, h, D) → (n, t·m, D), with zeros after the last query."""
        rows = rows.transpose(1, 2)
        if self.spare:
            rows = F.pad(rows, (0, 0, 0, self.spare))
        return rows.reshape(-1, self.tiles * self.tile, self.size).contiguous()  # a lone head's would stay a view

    def by_tile(self, rows: Tensor) -> Tensor:
        """(n, t·m, D) → (n·t, m, D)"""
        return rows.view(-1, self.tile, self.size)

    def out_of_tiles(self, rows: Tensor) -> Tensor:
        """(n, t·m, D) → (B, M, h, D)"""
        return rows[:, : self.block].unflatten(0, self.shape).transpose(1, 2)

    def to_memory(self, weights: Tensor) -> Tensor:
        """(n·t, m, W + N) → (n, t·m, N)"""
        return weights[:, :, self.width :].reshape(*self.q.shape[:2], -1)

    def windows(self, keys: Tensor) -> Tensor:
        """(B, T, h, D) → (n·t, W, D): what each tile's queries see."""
        if self.spare:
            keys = F.pad(keys, (0, 0, 0, 0, 0, self.spare))
        tiles = keys.unfold(1, self.width, self.tile)[:, : self.tiles]  # (B, t, h, D, W)
        return tiles.permute(0, 2, 1, 4, 3).flatten(0, 2)

    def out_of_windows(self, *keys_values: Tensor) -> Tensor:
        """(n·t, W, D), of keys and of values → (B, T, h, 2, D), where positions that several tiles see add up."""
        length = self.span + self.tiles * self.tile
        total = self.q.new_zeros(self.batch, length, self.heads, 2, self.size)
        for kind, grad in enumerate(keys_values):
            tiles = grad.unflatten(0, (*self.shape, self.tiles)).permute(2, 0, 3, 1, 4)  # (t, B, W, h, D)
            for tile, found in enumerate(tiles):
                total[:, tile * self.tile : tile * self.tile + self.width, :, kind] += found
        return total[:, : self.span + self.block]


def parts(
    projected: Sequence[Tensor],
    positions: Tensor,
    log_mask: Tensor | None,
    memory_key: Tensor | None,
    memory_value: Tensor | None,
) -> Iterator[tuple[slice, Group]]:
    """Each group and its heads."""
    first = 0
    for query, keys_values in zip(projected[::2], projected[1::2], strict=True):
        heads, span = slice(first, first + query.size(2)), keys_values.size(1) - query.size(1)
        memory = None
        if memory_key is not None and memory_value is not None:
            memory = (each_row(memory_key[heads], len(query)), each_row(memory_value[heads], len(query)))
        mask = None if log_mask is None else log_mask[heads, -span:]
        yield heads, Group(query, keys_values, positions[:, -span:], mask, memory)
        first = heads.stop


def draw_masks(
    dropout: float,
    groups: Sequence[Heads],
    projected: Sequence[Projected],
    memory: tuple[Tensor, Tensor] | None,
) -> list[tiles.Mask]:
    """Draw what `Bands` draws for each group, and return what is kept."""
    masks = []
    for (_, span), (query, _) in zip(groups, projected, strict=True):
        batch, block, heads, _ = query.shape
        tile = min(tile_size(span), block)
        width = span + tile - 1 + (0 if memory is None else memory[0].size(2))
        drawn = torch.rand(batch, heads, -(-block // tile), tile, width, dtype=draw_type(query), device=query.device)
        masks.append(tiles.Mask(drawn >= dropout, span))
    return masks


def draw_type(like: Tensor) -> torch.dtype:
    """Return at least fp32: 16 bits hold too few numbers to keep dropout's rate."""
    return torch.promote_types(like.dtype, torch.float32)


def kept(weights: Tensor, dropout: float) -> Tensor:
    """Draw what dropout multiplies weights by."""
    drawn = torch.rand_like(weights, dtype=draw_type(weights))
    return (drawn >= dropout).to(weights.dtype).div_(1 - dropout)


def each_row(memory: Tensor, batch: int) -> Tensor:
    """(h, …) → (n, …): the same for every row of the batch."""
    return memory.expand(batch, *memory.shape).flatten(0, 1)


def by_distance(products: Tensor, span: int) -> Tensor:
    """(n, m, ≥ S + m − 1) by absolute position → (n, m, S): a view whose row r starts at column r."""
    n, tile, _ = products.shape
    batch_stride, row_stride, _ = products.stride()
    return products.as_strided((n, tile, span), (batch_stride, row_stride + 1, 1), products.storage_offset())
