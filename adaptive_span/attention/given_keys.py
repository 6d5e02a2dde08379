"""The context of attention over queries, keys and values that the caller has projected."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adaptive_span.attention import HIDDEN, HeadGroup, Projected
from adaptive_span.attention.head_groups import order_on
from adaptive_span.attention.layout import puts_positions_first
from adaptive_span.attention.own_types import OwnTypes


@dataclass
class GivenKeys:
    """Offer some heads of given queries, keys and values, whose last M keys lie where the queries do.

    An implementation of attention looks back from each query and never at the query itself. Positions are moved on by
    `ahead` for it, so that it sees the query's own position, and later ones.

    Args:
        query: (B, H, M, D).
        key: (B, G, K, D), G key/value heads, each for H / G heads one behind another.
        value: (B, G, K, D).
        heads: the numbers of the heads that are offered.
        ahead: the positions from a query's own onward that it may see.
        scale: what queries are multiplied by.
        padding: true where a key is none, (B, K), or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    heads: Sequence[int]
    ahead: int
    scale: float
    padding: Tensor | None

    def __post_init__(self) -> None:
        self.dtype = self.query.dtype

    def project(self, groups: Sequence[HeadGroup]) -> list[Projected]:
        """Return what each group attends with. See `Context.project`."""
        own = [HeadGroup([self.heads[head] for head in heads], span) for heads, span in groups]
        tensors = GatherFunction.apply(own, self.ahead, self.padding, self.query * self.scale, self.key, self.value)
        biases = self._key_biases([span for _, span in groups])
        return list(map(Projected, tensors[: len(groups)], tensors[len(groups) :], biases))

    def _key_biases(self, spans: Sequence[int]) -> list[Tensor | None]:
        """Return for each span what hides from all queries the positions that do not exist, (B, span + M)."""
        block, known, span = self.query.size(2), self.key.size(2), max(spans)
        first = known - block - span + self.ahead
        if self.padding is None and first >= 0 and self.ahead <= 1:  # no query sees the last position
            return [None] * len(spans)
        hidden = max(HIDDEN, torch.finfo(self.key.dtype).min / 2)  # 16 bits may hold no more
        bias = self.key.new_full((len(self.key), span + block), hidden)
        inside, seen = _overlap(first, span + block, known)
        bias[:, inside] = 0
        if self.padding is not None:
            bias[:, inside].masked_fill_(self.padding[:, seen], hidden)
        return [bias[:, -each - block :] for each in spans]


class GatherFunction(OwnTypes):
    """Copy the heads and positions of each group out of given queries, keys and values.

    Its backward pass writes each gradient to its own place and adds none up but those of heads that share keys, so that
    the same step gives the same bits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        groups: Sequence[HeadGroup],
        ahead: int,
        padding: Tensor | None,  # (B, K)
        query: Tensor,  # (B, H, M, D)
        key: Tensor,  # (B, G, K, D)
        value: Tensor,  # (B, G, K, D)
    ) -> tuple[Tensor, ...]:
        """Return the queries of all groups, (B, M, h, D), then their keys and values, (B, T, h, 2, D)."""
        ctx.groups, ctx.ahead = groups, ahead
        ctx.save_for_backward(padding)  # so that a change of it before the backward pass is an error
        ctx.shapes = query.shape, key.shape
        share = query.size(1) // key.size(1)
        queries = [query.index_select(1, order_on(query.device, tuple(heads))).transpose(1, 2) for heads, _ in groups]
        keys_values = []
        for heads, span in groups:
            inside, seen, length = _places(span, ahead, query.shape, key.shape)
            gathered = _empty(key, length, len(heads))
            gathered[:, : inside.start].zero_()
            gathered[:, inside.stop :].zero_()
            shared = order_on(key.device, tuple(head // share for head in heads))
            for kind, tensor in enumerate((key, value)):
                gathered[:, inside, :, kind] = tensor[:, :, seen].index_select(1, shared).transpose(1, 2)
            if padding is not None:
                gathered[:, inside].masked_fill_(padding[:, seen, None, None, None], 0)
            keys_values.append(gathered)
        return (*queries, *keys_values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
        query_shape, key_shape = ctx.shapes
        [padding] = ctx.saved_tensors
        batch, heads, _, size = query_shape
        grad_query = grads[0].new_empty(query_shape)
        grad_keys_values = grads[0].new_empty(2, batch, heads, key_shape[2], size)  # of each head
        if sum(len(group.heads) for group in ctx.groups) < heads:  # the others have theirs from another class of heads
            grad_query.zero_(), grad_keys_values.zero_()
        for group, grad, grad_key_value in zip(
            ctx.groups, grads[: len(ctx.groups)], grads[len(ctx.groups) :], strict=True
        ):
            own = order_on(grad.device, tuple(group.heads)).long()
            inside, seen, _ = _places(group.span, ctx.ahead, query_shape, key_shape)
            grad_query.index_copy_(1, own, grad.transpose(1, 2))
            part = grad_key_value[:, inside]
            if padding is not None:
                part = part.masked_fill(padding[:, seen, None, None, None], 0)
            grad_keys_values[:, :, :, : seen.start].index_fill_(2, own, 0)
            grad_keys_values[:, :, :, seen].index_copy_(2, own, part.permute(3, 0, 2, 1, 4))
        if heads > key_shape[1]:
            grad_keys_values = grad_keys_values.unflatten(2, (key_shape[1], -1)).sum(3)
        grad_key, grad_value = grad_keys_values
        return None, None, None, grad_query, grad_key, grad_value


def _places(span: int, ahead: int, query: torch.Size, key: torch.Size) -> tuple[slice, slice, int]:
    """Return which positions of a group are known, where they lie among the keys, and how many the group has."""
    length = span + query[2]
    inside, seen = _overlap(key[2] - length + ahead, length, key[2])
    return inside, seen, length


def _overlap(first: int, length: int, known: int) -> tuple[slice, slice]:
    """Return where `length` positions from `first` on overlap the known ones, counted in the former and the latter."""
    start, stop = max(first, 0), min(first + length, known)
    return slice(start - first, stop - first), slice(start, stop)


def _empty(like: Tensor, length: int, heads: int) -> Tensor:
    """Return memory for keys and values, (B, T, h, 2, D), which lie as the implementations want them."""
    batch, _, _, size = like.shape
    if puts_positions_first(like.device):
        return like.new_empty(length, batch, heads, 2, size).transpose(0, 1)
    return like.new_empty(batch, length, heads, 2, size)
