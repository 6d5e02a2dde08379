"""Attention that costs what each head looks at, in PyTorch: heads of similar span share a band of keys and values.

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

from adaptive_span.attention.context import Context, by_groups, out_of_groups
from adaptive_span.own_types import OwnTypes
from adaptive_span.span import log_soft_mask

SHORTEST_TILE, LONGEST_TILE = 64, 256  # queries
WASTE = 1.3  # a group's longest head costs at most so many times what its shortest one would cost alone


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
    query = by_groups(query * query.size(3) ** -0.5, 1, groups)
    near = positions[:, -max(limits) :].to(query.dtype)
    log_mask = None
    if spans is not None:
        log_mask = log_soft_mask(by_groups(spans, 0, groups), ramp, max(limits)).to(query.dtype)
    kept = (None, None) if memory is None else tuple(by_groups(x, 0, groups).to(query.dtype) for x in memory)
    keys_values = context.keys_values([(heads, span + block) for heads, span in groups])
    output = Bands.apply([len(heads) for heads, _ in groups], dropout, query, near, log_mask, *kept, *keys_values)
    return out_of_groups(output, 1, groups)


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
        sizes: Sequence[int],  # heads of each group
        dropout: float,
        query: Tensor,  # (B, H, M, D), scaled
        positions: Tensor,  # (D, S) of the longest group
        log_mask: Tensor | None,  # (H, S)
        memory_key: Tensor | None,  # (H, D, N)
        memory_value: Tensor | None,  # (H, N, D)
        *keys_values: Tensor,  # of each group (B, 2, h, D, T)
    ) -> Tensor:
        output, saved = torch.empty_like(query), []
        for heads, group in parts(sizes, query, positions, log_mask, memory_key, memory_value, keys_values):
            output[:, heads], *kept = group.forward(dropout)
            saved += kept
        ctx.sizes = sizes
        ctx.save_for_backward(query, positions, log_mask, memory_key, memory_value, *keys_values, *saved)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, positions, log_mask, memory_key, memory_value, *rest = ctx.saved_tensors
        keys_values, saved = rest[: len(ctx.sizes)], rest[len(ctx.sizes) :]
        grad_query, grad_positions = torch.empty_like(query), torch.zeros_like(positions)
        grad_mask, grad_memory_key, grad_memory_value = (
            None if x is None else torch.zeros_like(x) for x in (log_mask, memory_key, memory_value)
        )
        grad_keys_values: list[Tensor] = []
        groups = parts(ctx.sizes, query, positions, log_mask, memory_key, memory_value, keys_values)
        for (heads, group), weights, keep in zip(groups, saved[::2], saved[1::2], strict=True):
            found = group.backward(grad[:, heads], weights, keep)
            grad_query[:, heads] = found.query
            grad_positions[:, -group.span :] += found.positions
            grad_keys_values.append(found.keys_values)
            if grad_mask is not None and found.log_mask is not None:
                grad_mask[heads, -group.span :] = found.log_mask
            if grad_memory_key is not None and grad_memory_value is not None and found.memory is not None:
                grad_memory_key[heads], grad_memory_value[heads] = found.memory
        memory = (grad_memory_key, grad_memory_value)
        return None, None, grad_query, grad_positions, grad_mask, *memory, *grad_keys_values


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

    query: Tensor  # (B, h, M, D)
    keys_values: Tensor  # (B, 2, h, D, T)
    positions: Tensor  # (D, S)
    log_mask: Tensor | None  # (h, S)
    memory: tuple[Tensor, Tensor] | None  # (n, D, N), (n, N, D)

    def __post_init__(self) -> None:
        self.batch, self.heads, self.block, self.size = self.query.shape
        self.span = self.positions.size(1)
        self.tile = min(tile_size(self.span), self.block)
        self.tiles = -(-self.block // self.tile)
        self.spare = self.tiles * self.tile - self.block  # rows of the last tile that no query is in
        self.width = self.span + self.tile - 1
        self.shape = (self.batch, self.heads)
        self.q = self.in_tiles(self.query)  # (n, t·m, D)
        self.key, self.value = self.keys_values.unbind(1)  # (B, h, D, T)

    def forward(self, dropout: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """The output (B, h, M, D); and for `backward` the weights and what dropout kept of them, (n·t, m, W + N)."""
        scores = self.scores()
        if self.memory is not None:
            to_memory = torch.bmm(self.q, self.memory[0])  # (n, t·m, N)
            scores = torch.cat([scores, to_memory.view(*scores.shape[:2], -1)], dim=2)
        weights = scores.softmax(2)
        keep = kept(weights, dropout) if dropout else None
        dropped = weights if keep is None else weights * keep
        output = torch.bmm(dropped[:, :, : self.width], self.windows(self.value).transpose(1, 2))  # (n·t, m, D)
        output = output.view(self.q.shape)
        if self.memory is not None:
            output.baddbmm_(self.to_memory(dropped), self.memory[1])
        return self.out_of_tiles(output), weights, keep

    def backward(self, grad: Tensor, weights: Tensor, keep: Tensor | None) -> Gradients:
        q, g = self.by_tile(self.q), self.by_tile(self.in_tiles(grad))  # (n·t, m, D)
        dropped = weights if keep is None else weights * keep  # (n·t, m, W + N)
        grad_weights = torch.bmm(g, self.windows(self.value))
        if self.memory is not None:
            of_memory = torch.bmm(g.view(self.q.shape), self.memory[1].transpose(1, 2))
            grad_weights = torch.cat([grad_weights, of_memory.view(*g.shape[:2], -1)], dim=2)
        if keep is not None:
            grad_weights *= keep
        grad_scores = torch._softmax_backward_data(grad_weights, weights, 2, weights.dtype)
        seen = grad_scores[:, :, : self.width]  # (n·t, m, W)
        grad_near = by_distance(seen, self.span).reshape(*self.q.shape[:2], self.span)  # (n, t·m, S)
        grad_q = torch.bmm(seen, self.windows(self.key).transpose(1, 2)).view(self.q.shape)
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
                torch.bmm(q.transpose(1, 2), seen), torch.bmm(g.transpose(1, 2), dropped[:, :, : self.width])
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
        return scores.baddbmm_(self.by_tile(self.q), self.windows(self.key))

    def in_tiles(self, rows: Tensor) -> Tensor:
        """(B, h, M, D) → (n, t·m, D), with zeros after the last query."""
        if self.spare:
            rows = F.pad(rows, (0, 0, 0, self.spare))
        return rows.reshape(-1, self.tiles * self.tile, self.size).contiguous()  # a lone head's would stay a view

    def by_tile(self, rows: Tensor) -> Tensor:
        """(n, t·m, D) → (n·t, m, D)"""
        return rows.view(-1, self.tile, self.size)

    def out_of_tiles(self, rows: Tensor) -> Tensor:
        """(n, t·m, D) → (B, h, M, D)"""
        return rows[:, : self.block].unflatten(0, self.shape)

    def to_memory(self, weights: Tensor) -> Tensor:
        """(n·t, m, W + N) → (n, t·m, N)"""
        return weights[:, :, self.width :].reshape(*self.q.shape[:2], -1)

    def windows(self, keys: Tensor) -> Tensor:
        """(B, h, D, T) → (n·t, D, W): what each tile's queries see."""
        if self.spare:
            keys = F.pad(keys, (0, self.spare))
        return keys.unfold(3, self.width, self.tile)[:, :, :, : self.tiles].transpose(2, 3).flatten(0, 2)

    def out_of_windows(self, *keys_values: Tensor) -> Tensor:
        """(n·t, D, W), of keys and of values → (B, 2, h, D, T), where positions that several tiles see add up."""
        length = self.span + self.tiles * self.tile
        total = self.q.new_zeros(self.batch, 2, self.heads, self.size, length)
        for kind, grad in enumerate(keys_values):
            tiles = grad.unflatten(0, (*self.shape, self.tiles))
            for tile in range(self.tiles):
                total[:, kind, ..., tile * self.tile : tile * self.tile + self.width] += tiles[:, :, tile]
        return total[..., : self.span + self.block]


def parts(
    sizes: Sequence[int],
    query: Tensor,
    positions: Tensor,
    log_mask: Tensor | None,
    memory_key: Tensor | None,
    memory_value: Tensor | None,
    keys_values: Sequence[Tensor],
) -> Iterator[tuple[slice, Group]]:
    """Each group and its heads."""
    first, batch = 0, query.size(0)
    for size, both in zip(sizes, keys_values, strict=True):
        heads = slice(first, first + size)
        span = both.size(4) - query.size(2)
        memory = None
        if memory_key is not None and memory_value is not None:
            memory = (each_row(memory_key[heads], batch), each_row(memory_value[heads], batch))
        yield (
            heads,
            Group(
                query[:, heads],
                both,
                positions[:, -span:],
                None if log_mask is None else log_mask[heads, -span:],
                memory,
            ),
        )
        first += size


def kept(weights: Tensor, dropout: float) -> Tensor:
    """Draw what dropout multiplies weights by, in at least fp32: 16 bits hold too few numbers to keep the rate."""
    drawn = torch.rand_like(weights, dtype=torch.promote_types(weights.dtype, torch.float32))
    return (drawn >= dropout).to(weights.dtype).div_(1 - dropout)


def each_row(memory: Tensor, batch: int) -> Tensor:
    """(h, …) → (n, …): the same for every row of the batch."""
    return memory.expand(batch, *memory.shape).flatten(0, 1)


def by_distance(products: Tensor, span: int) -> Tensor:
    """(n, m, ≥ S + m − 1) by absolute position → (n, m, S): a view whose row r starts at column r."""
    n, tile, _ = products.shape
    batch_stride, row_stride, _ = products.stride()
    return products.as_strided((n, tile, span), (batch_stride, row_stride + 1, 1), products.storage_offset())
