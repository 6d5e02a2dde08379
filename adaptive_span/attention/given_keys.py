"""The context of attention over queries, keys and values that the caller has projected."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
        computed_in: the type to attend in; that of the queries where not given.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    heads: Sequence[int]
    ahead: int
    scale: float
    padding: Tensor | None
    computed_in: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.dtype = self.computed_in or self.query.dtype
        self._gathered: dict[
            int, tuple[HeadGroup, bool]
        ] = {}  # by where it lies: of which group, and whether it is keys

    def project(self, groups: Sequence[HeadGroup]) -> list[Projected]:
        """Return what each group attends with. See `Context.project`."""
        own = [HeadGroup([self.heads[head] for head in heads], span) for heads, span in groups]
        queries_keys_values = GatherFunction.apply(self, own, self.query, self.key, self.value)
        queries, keys_values = queries_keys_values[: len(own)], queries_keys_values[len(own) :]
        for group, *gathered in zip(own, queries, keys_values, strict=True):
            for tensor, are_keys in zip(gathered, (False, True), strict=True):
                self._gathered[tensor.untyped_storage().data_ptr()] = group, are_keys
        return list(map(Projected, queries, keys_values, self._key_biases([span for _, span in groups])))

    @contextmanager
    def gathered_again(self) -> Iterator[None]:
        """Let attention in here keep no copy of what is gathered, of every head: its backward pass gathers it again."""

        def pack(tensor: Tensor) -> Any:
            found = self._gathered.get(tensor.untyped_storage().data_ptr())
            return (*found, tensor.size(), tensor.stride(), tensor.storage_offset()) if found else tensor

        def unpack(kept: Any) -> Tensor:
            if isinstance(kept, Tensor):
                return kept
            group, are_keys, *view = kept
            gathered = self.gather_keys_values(group) if are_keys else self.gather_queries(group)
            return gathered.as_strided(*view)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
        self._gathered.clear()  # other tensors will lie there

    def gather_queries(self, group: HeadGroup) -> Tensor:
        """Return a group's queries, scaled, (B, M, h, D)."""
        heads = order_on(self.query.device, tuple(group.heads))
        if puts_positions_first(self.query.device):
            gathered = self.query.permute(2, 0, 1, 3).index_select(2, heads).transpose(0, 1)
        else:
            gathered = self.query.transpose(1, 2).index_select(2, heads)
        return gathered.to(self.dtype) * self.scale

    def gather_keys_values(self, group: HeadGroup) -> Tensor:
        """Return a group's keys and values, (B, T, h, 2, D), zeros where there are none."""
        key, share = self.key, self.query.size(1) // self.key.size(1)
        inside, seen, length = _places(group.span, self.ahead, self.query.shape, key.shape)
        shape = (len(key), length, len(group.heads), 2, key.size(3))
        if puts_positions_first(key.device):
            gathered = key.new_empty(length, len(key), *shape[2:], dtype=self.dtype).transpose(0, 1)
        else:
            gathered = key.new_empty(shape, dtype=self.dtype)
        gathered[:, : inside.start].zero_()
        gathered[:, inside.stop :].zero_()
        shared = order_on(key.device, tuple(head // share for head in group.heads))
        for kind, tensor in enumerate((key, self.value)):
            gathered[:, inside, :, kind] = tensor[:, :, seen].index_select(1, shared).transpose(1, 2)
        if self.padding is not None:
            gathered[:, inside].masked_fill_(self.padding[:, seen, None, None, None], 0)
        return gathered

    def _key_biases(self, spans: Sequence[int]) -> list[Tensor | None]:
        """Return for each span what hides from all queries the positions that do not exist, (B, span + M)."""
        block, known, span = self.query.size(2), self.key.size(2), max(spans)
        first = known - block - span + self.ahead
        if self.padding is None and first >= 0 and self.ahead <= 1:  # no query sees the last position
            return [None] * len(spans)
        hidden = max(HIDDEN, torch.finfo(self.dtype).min / 2)  # 16 bits may hold no more
        bias = self.key.new_full((len(self.key), span + block), hidden, dtype=self.dtype)
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
        given: GivenKeys,
        groups: Sequence[HeadGroup],
        query: Tensor,  # (B, H, M, D), those of `given`, as both are below
        key: Tensor,  # (B, G, K, D)
        value: Tensor,  # (B, G, K, D)
    ) -> tuple[Tensor, ...]:
        """Return the queries of all groups, (B, M, h, D), then their keys and values, (B, T, h, 2, D)."""
        ctx.groups, ctx.ahead, ctx.scale = groups, given.ahead, given.scale
        ctx.shapes, ctx.dtypes = (query.shape, key.shape), (query.dtype, key.dtype)
        ctx.save_for_backward(given.padding)  # so that a change of it before the backward pass is an error
        return *map(given.gather_queries, groups), *map(given.gather_keys_values, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of queries, keys and values."""
        (query_shape, key_shape), (query_dtype, key_dtype) = ctx.shapes, ctx.dtypes
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
        grad_key, grad_value = grad_keys_values.to(key_dtype)
        return None, None, (grad_query * ctx.scale).to(query_dtype), grad_key, grad_value


def _places(span: int, ahead: int, query: torch.Size, key: torch.Size) -> tuple[slice, slice, int]:
    """Return which positions of a group are known, where they lie among the keys, and how many the group has."""
    length = span + query[2]
    inside, seen = _overlap(key[2] - length + ahead, length, key[2])
    return inside, seen, length


def _overlap(first: int, length: int, known: int) -> tuple[slice, slice]:
    """Return where `length` positions from `first` on overlap the known ones, counted in the former and the latter."""
    start, stop = max(first, 0), min(first + length, known)
    return slice(start - first, stop - first), slice(start, stop)
