"""Keys and values of the tokens that some heads of a layer still need: the first, and a ring of the last."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaptive_span.hf.learned import HeadSpans

GROWTH = 32  # of a buffer that is full: by one part in so many, so that little is held empty and little is copied


class Ring:
    """Hold keys and values of the key/value heads that need the same number of tokens.

    The first slots hold the sinks; the token at position p after them lies at slot (p − sinks) mod `limit` behind them,
    so that a token overwrites the one that no head sees any more.

    Args:
        spans: of the layer's H query heads.
        kv_heads: G of the layer.
        heads: the g key/value heads that are held here.
        limit: tokens that are kept beside the sinks, with the present one; None for all.
    """

    def __init__(self, spans: HeadSpans, kv_heads: int, heads: Sequence[int], limit: int | None):
        self.spans, self.kv_heads, self.limit = spans, kv_heads, limit
        adjoin = list(heads) == list(range(heads[0], heads[-1] + 1))
        self.heads = slice(heads[0], heads[-1] + 1) if adjoin else list(heads)
        self.length = 0  # tokens of the text
        self.keys: Tensor | None = None  # (B, g, slots, D)
        self.values: Tensor | None = None  # (B, g, slots, D)
        self.table: Tensor | None = None  # log m at the distances C − 1 … 0, (g, H / G, C)
        self.sees_all = False  # whether that is 0 everywhere

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None) -> Tensor:
        """Add new tokens, and attend from them to those that are held and to themselves.

        Args:
            query: (B, G, H / G, M, D), at the last positions.
            key: (B, G, M, D).
            value: (B, G, M, D).
            scale: what queries are multiplied by.
            softcap: c of the scores c · tanh(s / c); None for scores as they are.

        Returns:
            (B, g, H / G, M, D).
        """
        queries = query[:, self.heads].flatten(2, 3)  # (B, g, H / G · M, D)
        if key.size(2) == 1:
            self.store(key, value)
            assert self.keys is not None
            assert self.values is not None
            filled = self._filled(self.length)
            keys, values, mask = self.keys[:, :, :filled], self.values[:, :, :filled], self._row(queries)
        else:
            filled = self._filled(self.length)
            keys, values = key[:, self.heads], value[:, self.heads]
            mask = self._rows(key.size(2), queries)
            if self.keys is not None and self.values is not None:
                keys = torch.cat([self.keys[:, :, :filled], keys], 2)
                values = torch.cat([self.values[:, :, :filled], values], 2)
            self.store(key, value)
        output: Tensor = _weigh(queries, keys, values, mask, scale, softcap).unflatten(2, query.shape[2:4])
        return output

    def store(self, key: Tensor, value: Tensor) -> None:
        """Keep of new tokens, (B, G, M, D), what later ones need."""
        first, self.length = self.length, self.length + key.size(2)
        self._grow(key[:, self.heads], value[:, self.heads])
        assert self.keys is not None
        assert self.values is not None
        if key.size(2) == 1:
            slot = self._slot(first)
            self.keys[:, :, slot] = key[:, self.heads, 0]
            self.values[:, :, slot] = value[:, self.heads, 0]
            return
        oldest = first if self.limit is None else max(first, self.length - self.limit)
        kept = [*range(first, min(self.length, self.spans.sinks)), *range(max(oldest, self.spans.sinks), self.length)]
        slots = torch.tensor([self._slot(position) for position in kept], device=key.device)
        places = torch.tensor(kept, device=key.device) - first
        self.keys.index_copy_(2, slots, key[:, self.heads].index_select(2, places))
        self.values.index_copy_(2, slots, value[:, self.heads].index_select(2, places))

    def held(self) -> list[Tensor]:
        """Return all that takes memory."""
        return [tensor for tensor in (self.keys, self.values, self.table) if tensor is not None]

    def _filled(self, length: int) -> int:
        return length if self.limit is None else min(length, self.spans.sinks + self.limit)

    def _slot(self, position: int) -> int:
        if self.limit is None or position < self.spans.sinks:
            return position
        return self.spans.sinks + (position - self.spans.sinks) % self.limit

    def _grow(self, key: Tensor, value: Tensor) -> None:
        """Make room for as many tokens as there are by now. A ring grows only before it is full, so that none moves."""
        needed = self._filled(self.length)
        if self.keys is not None and self.values is not None and self.keys.size(2) >= needed:
            return
        slots = self._filled(needed + needed // GROWTH)
        for name, new in (("keys", key), ("values", value)):
            old: Tensor | None = getattr(self, name)
            buffer = new.new_empty(*new.shape[:2], slots, new.size(3))
            if old is not None:
                buffer[:, :, : old.size(2)] = old
            setattr(self, name, buffer)
        if self.limit is None:
            self.table = None

    def _row(self, query: Tensor) -> Tensor | None:
        """Return log m from the last token to each slot, (g, H / G, slots); None where it sees all of them."""
        assert self.keys is not None
        sinks, behind = self.spans.sinks, self.length - self.spans.sinks
        if behind <= 0 or self.sees_all:
            return None
        if self.table is None:
            size = self.limit or self.keys.size(2)
            self.table = self._log_mask(torch.arange(size - 1, -1, -1, device=query.device)).to(query.dtype)
            if self.limit is not None and not self.table.any():
                self.table, self.sees_all = None, True
                return None
        size = self.table.size(2)
        newest = size - 1 - (behind - 1) % size
        parts = [self.table.new_zeros(*self.table.shape[:2], sinks), self.table[:, :, newest:]]
        return torch.cat([*parts, self.table[:, :, :newest]] if behind >= size else parts, 2)

    def _rows(self, block: int, query: Tensor) -> Tensor:
        """Return log m from so many new tokens to each slot and to themselves, (g, H / G · M, slots + M)."""
        slots = torch.arange(self._filled(self.length), device=query.device)
        if self.limit is not None and self.length:
            last, ring = self.length - 1, slots - self.spans.sinks
            slots = torch.where(ring < 0, slots, last - ((last - self.spans.sinks) - ring) % self.limit)
        new = torch.arange(self.length, self.length + block, device=query.device)
        positions = torch.cat([slots, new])
        distances = new[:, None] - positions  # (M, slots + M)
        mask = self._log_mask(distances).masked_fill(positions < self.spans.sinks, 0.0)
        return mask.masked_fill(distances < 0, float("-inf")).flatten(1, 2).to(query.dtype)

    def _log_mask(self, distances: Tensor) -> Tensor:
        """Return log m at distances ≥ 0, (g, H / G, …)."""
        mask = self.spans.log_mask(distances.clamp(min=1)).masked_fill(distances <= 0, 0.0)
        grouped: Tensor = mask.unflatten(0, (self.kv_heads, -1))[self.heads]
        return grouped


def _weigh(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    if softcap is None:
        added = None if mask is None else mask[None]
        return nn.functional.scaled_dot_product_attention(query, key, value, added, scale=scale)
    scores = softcap * ((query @ key.transpose(2, 3)).float() * (scale / softcap)).tanh()
    output: Tensor = (scores if mask is None else scores + mask).softmax(3).to(query.dtype) @ value
    return output
