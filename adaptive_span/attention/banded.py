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
from torch import Tensor
from torch.autograd.function import once_differentiable

from adaptive_span.attention.context import Context, by_groups, reorder
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
    log_mask = log_soft_mask(by_groups(spans, 0, groups), ramp, max(limits)) if spans is not None else None
    kept = (None, None) if memory is None else tuple(by_groups(x, 0, groups).to(query.dtype) for x in memory)
    keys_values = [x for pair in context.keys_values([(heads, span + block) for heads, span in groups]) for x in pair]
    output = Bands.apply([len(heads) for heads, _ in groups], dropout, query, near, log_mask, *kept, *keys_values)
    order = [head for heads, _ in groups for head in heads]
    return reorder(output, 1, sorted(range(len(order)), key=order.__getitem__))


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


class Bands(torch.autograd.Function):
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
        *keys_values: Tensor,  # of each group (B, h, T, D) twice, with T as the innermost dimension in memory
    ) -> Tensor:
        output, saved, counts = torch.empty_like(query), [], []
        for heads, group in parts(sizes, query, positions, log_mask, memory_key, memory_value, keys_values):
            weights = group.forward(output[:, heads], dropout)
            counts.append(len(weights))
            saved += weights
        ctx.sizes, ctx.counts = sizes, counts
        ctx.save_for_backward(query, positions, log_mask, memory_key, memory_value, *keys_values, *saved)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, positions, log_mask, memory_key, memory_value, *rest = ctx.saved_tensors
        keys_values, saved = rest[: 2 * len(ctx.sizes)], iter(rest[2 * len(ctx.sizes) :])
        grad_query, grad_positions = torch.empty_like(query), torch.zeros_like(positions)
        grad_mask, grad_memory_key, grad_memory_value = (
            None if x is None else torch.zeros_like(x) for x in (log_mask, memory_key, memory_value)
        )
        grad_keys_values: list[Tensor] = []
        groups = parts(ctx.sizes, query, positions, log_mask, memory_key, memory_value, keys_values)
        for count, (heads, group) in zip(ctx.counts, groups, strict=True):
            found = group.backward(grad[:, heads], [next(saved) for _ in range(count)])
            grad_query[:, heads] = found.query
            grad_positions[:, -group.span :] += found.positions
            grad_keys_values += found.keys_values
            if grad_mask is not None:
                grad_mask[heads, -group.span :] = found.log_mask
            if grad_memory_key is not None and grad_memory_value is not None and found.memory is not None:
                grad_memory_key[heads], grad_memory_value[heads] = found.memory
        memory = (grad_memory_key, grad_memory_value)
        return None, None, grad_query, grad_positions, grad_mask, *memory, *grad_keys_values


@dataclass
class Gradients:
    query: Tensor
    positions: Tensor
    log_mask: Tensor
    memory: tuple[Tensor, Tensor] | None
    keys_values: list[Tensor]


@dataclass
class Group:
    """One group's share of a layer, its n = B·h heads and rows as so many matrices."""

    query: Tensor  # (B, h, M, D)
    key: Tensor  # (n, D, T)
    value: Tensor  # (n, D, T)
    positions: Tensor  # (D, S)
    log_mask: Tensor | None  # (h, S)
    memory: tuple[Tensor, Tensor] | None  # (n, D, N), (n, N, D)

    def __post_init__(self) -> None:
        self.batch, self.heads, self.block, size = self.query.shape
        self.span = self.positions.size(1)
        self.q = self.query.reshape(-1, self.block, size)  # (n, M, D)

    def forward(self, output: Tensor, dropout: float) -> list[Tensor | None]:
        """Fill `output` (B, h, M, D). Returns what `backward` needs: each tile's weights, and what dropout kept."""
        q, saved, masks = self.q, [], {}
        near = torch.matmul(q, self.positions)  # (n, M, S), by distance
        for rows, columns in self.tiles():
            tile, width = rows.stop - rows.start, columns.stop - columns.start
            if tile not in masks:
                masks[tile] = self.mask(tile)
            scores = torch.bmm(q[:, rows], self.key[:, :, columns])  # (n, m, W)
            by_distance(scores, self.span).add_(near[:, rows])
            scores.view(self.batch, self.heads, tile, width).add_(masks[tile])
            if self.memory is not None:
                scores = torch.cat([scores, torch.bmm(q[:, rows], self.memory[0])], dim=2)
            weights = scores.softmax(2)  # (n, m, W + N)
            keep = (torch.rand_like(weights) >= dropout).to(weights.dtype).div_(1 - dropout) if dropout else None
            saved += [weights, keep]
            weights = weights if keep is None else weights * keep
            found = torch.bmm(weights[:, :, :width], self.value[:, :, columns].transpose(1, 2))  # (n, m, D)
            if self.memory is not None:
                found += torch.bmm(weights[:, :, width:], self.memory[1])
            output[:, :, rows] = found.view(self.batch, self.heads, tile, -1)
        return saved

    def backward(self, grad: Tensor, saved: Sequence[Tensor | None]) -> Gradients:
        q, g, key, value = self.q, grad.reshape_as(self.q), self.key, self.value
        grad_q, grad_key, grad_value = torch.empty_like(q), torch.zeros_like(key), torch.zeros_like(value)
        grad_near = q.new_empty(*q.shape[:2], self.span)  # (n, M, S)
        grad_memory = self.memory and (torch.zeros_like(self.memory[0]), torch.zeros_like(self.memory[1]))
        for (rows, columns), weights, keep in zip(self.tiles(), saved[::2], saved[1::2], strict=True):
            assert weights is not None
            dropped = weights if keep is None else weights * keep  # (n, m, W + N)
            width = columns.stop - columns.start
            grad_value[:, :, columns] += torch.bmm(g[:, rows].transpose(1, 2), dropped[:, :, :width])
            grad_weights = torch.bmm(g[:, rows], value[:, :, columns])
            if self.memory is not None and grad_memory is not None:
                grad_weights = torch.cat([grad_weights, torch.bmm(g[:, rows], self.memory[1].transpose(1, 2))], dim=2)
                grad_memory[1].add_(torch.bmm(dropped[:, :, width:].transpose(1, 2), g[:, rows]))
            if keep is not None:
                grad_weights *= keep
            grad_scores = torch._softmax_backward_data(grad_weights, weights, 2, weights.dtype)
            seen = grad_scores[:, :, :width]  # (n, m, W)
            grad_key[:, :, columns] += torch.bmm(q[:, rows].transpose(1, 2), seen)
            grad_q[:, rows] = torch.bmm(seen, key[:, :, columns].transpose(1, 2))
            grad_near[:, rows] = by_distance(seen, self.span)
            if self.memory is not None and grad_memory is not None:
                grad_q[:, rows] += torch.bmm(grad_scores[:, :, width:], self.memory[0].transpose(1, 2))
                grad_memory[0].add_(torch.bmm(q[:, rows].transpose(1, 2), grad_scores[:, :, width:]))
        grad_q += torch.matmul(grad_near, self.positions.t())
        shape = (self.batch, self.heads)
        return Gradients(
            query=grad_q.view_as(self.query),
            positions=torch.mm(q.flatten(0, 1).t(), grad_near.flatten(0, 1)),
            log_mask=grad_near.unflatten(0, shape).sum((0, 2)),
            memory=None
            if grad_memory is None
            else (over_rows(grad_memory[0], shape), over_rows(grad_memory[1], shape)),
            keys_values=[x.unflatten(0, shape).transpose(2, 3) for x in (grad_key, grad_value)],
        )

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """For each tile of queries its rows, and the columns of the keys that some of them sees."""
        size = tile_size(self.span)
        for start in range(0, self.block, size):
            end = min(start + size, self.block)
            yield slice(start, end), slice(start, end + self.span - 1)

    def mask(self, tile: int) -> Tensor:
        """log m inside the band, −inf outside: (h or 1, m, W)."""
        heads = 1 if self.log_mask is None else self.heads
        mask = self.q.new_full((heads, tile, self.span + tile - 1), float("-inf"))
        band = by_distance(mask, self.span)
        if self.log_mask is None:
            band.zero_()
        else:
            band.copy_(self.log_mask[:, None])
        return mask


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
    for size, key, value in zip(sizes, keys_values[::2], keys_values[1::2], strict=True):
        heads = slice(first, first + size)
        span = key.size(2) - query.size(2)
        memory = None
        if memory_key is not None and memory_value is not None:
            memory = (each_row(memory_key[heads], batch), each_row(memory_value[heads], batch))
        yield (
            heads,
            Group(
                query[:, heads],
                key.transpose(2, 3).flatten(0, 1),
                value.transpose(2, 3).flatten(0, 1),
                positions[:, -span:],
                None if log_mask is None else log_mask[heads, -span:],
                memory,
            ),
        )
        first += size


def each_row(memory: Tensor, batch: int) -> Tensor:
    """(h, …) → (n, …): the same for every row of the batch."""
    return memory.expand(batch, *memory.shape).flatten(0, 1)


def over_rows(grad: Tensor, shape: tuple[int, int]) -> Tensor:
    """(n, …) → (h, …)"""
    return grad.unflatten(0, shape).sum(0)


def by_distance(products: Tensor, span: int) -> Tensor:
    """(n, m, ≥ S + m − 1) by absolute position → (n, m, S): a view whose row r starts at column r."""
    n, tile, _ = products.shape
    batch_stride, row_stride, _ = products.stride()
    return products.as_strided((n, tile, span), (batch_stride, row_stride + 1, 1), products.storage_offset())
