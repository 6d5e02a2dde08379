"""What a layer knows of the past and the present, offered to attention as queries, keys and values.

B batch, H heads, h heads of a group, D head size, C hidden size, M block, T positions: the present block is the last M.
"""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adaptive_span.attention.layout import as_rows, cat_positions, is_positions_first, out_of_rows
from adaptive_span.attention.own_types import OwnTypes

Group = tuple[Sequence[int], int]  # some heads, and how many positions before the present block they want
Projected = tuple[Tensor, Tensor]  # queries (B, M, h, D), times 1/sqrt(D); keys and values (B, T, h, 2, D)
Weights = tuple[Tensor, Tensor, Tensor]  # of queries, keys and values: (C, C) each


class Context(Protocol):
    """The seam between the model and attention: no attention sees hidden states, no model sees bands or tiles."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of queries, keys and values."""
        ...

    def project(self, groups: Sequence[Group]) -> list[Projected]:
        """Return each group's queries of the present block, and its keys and values there and `span` positions before.

        Each head is in one group. Positions run from the oldest to the newest; what is before the first known one has
        zeros for its key and value.
        """
        ...


class HiddenStates:
    """The training context: hidden states, projected for just the heads and positions that are asked for, so that the
    projections receive gradient from the cached positions too."""

    def __init__(self, states: Tensor, present: Tensor, weights: Weights, num_heads: int):
        """`states` (B, T, C) from `join` are what is multiplied, and constants; `present` (B, M, C), of which the last
        of them were made, gets the gradient of these."""
        self.states, self.present = states, present
        self.weights, self.num_heads = weights, num_heads
        self.dtype = states.dtype

    def project(self, groups: Sequence[Group]) -> list[Projected]:
        query, key_value = head_weights(self.weights, self.num_heads, groups, self.dtype)
        sizes = [(len(heads), span + self.present.size(1)) for heads, span in groups]
        projected = Projection.apply(sizes, self.present, self.states, query, key_value)
        return list(zip(projected[: len(groups)], projected[len(groups) :], strict=True))


class KeysValues:
    """The inference context: past keys and values as they were projected once, no further back than a group looks.

    `past` is what `kept` was after the block before, for the same groups; empty at the start.
    """

    def __init__(self, past: Sequence[Tensor], present: Tensor, weights: Weights, num_heads: int):
        if torch.is_grad_enabled():
            raise RuntimeError("keys and values are kept for inference: gradients would miss what they came from")
        self.past, self.present = past, present  # for each group (B, T, h, 2, D); (B, M, C)
        self.weights, self.num_heads = weights, num_heads
        self.dtype = self.present.dtype
        self.kept: list[Tensor] = []

    def project(self, groups: Sequence[Group]) -> list[Projected]:
        sizes = [len(heads) for heads, _ in groups]
        weights = head_weights(self.weights, self.num_heads, groups, self.dtype)
        queries, present = (_projected(self.present, each).split(sizes, dim=2) for each in weights)
        past = self.past or [here[:, :0] for here in present]
        keys_values = [
            cat_positions([_zeros(before, span - before.size(1)), before, here])
            for before, here, (_, span) in zip(past, present, groups, strict=True)
        ]
        self.kept = [both[:, self.present.size(1) :] for both in keys_values]
        return list(zip(queries, keys_values, strict=True))


def join(past: Tensor, present: Tensor, reach: int) -> Tensor:
    """Return the last `reach` hidden states of the past (B, T, C), zeros where it has fewer, and the present's
    (B, M, C): one constant tensor (B, reach + M, C), laid out as the present is."""
    with torch.no_grad():
        known, (batch, block, size) = min(reach, past.size(1)), present.shape
        if is_positions_first(present):
            joined = present.new_empty(reach + block, batch, size).transpose(0, 1)
        else:
            joined = present.new_empty(batch, reach + block, size)
        joined[:, : reach - known].zero_()
        joined[:, reach - known : reach] = past[:, past.size(1) - known :]
        joined[:, reach:] = present
    return joined


def in_autocast(tensor: Tensor) -> Tensor:
    """In the precision that matrix products are made in."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def head_weights(
    weights: Weights, num_heads: int, groups: Sequence[Group], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return what makes queries, (H, D, C), and keys and values, (H, 2, D, C), with heads in the order of the groups.

    Heads are put in order, and queries scaled, here, where they are small.
    """
    query, key, value = (weight.unflatten(0, (num_heads, -1)) for weight in weights)
    query = by_groups(query, 0, groups) * query.size(1) ** -0.5
    return query.to(dtype), by_groups(torch.stack([key, value], dim=1), 0, groups).to(dtype)


class Projection(OwnTypes):
    """Queries, keys and values of all groups, one matrix product each; and in the backward pass one sum of all that
    reaches the present hidden states, and no gradient of the past ones."""

    @staticmethod
    def forward(
        ctx: Any,
        sizes: Sequence[tuple[int, int]],  # heads of each group, and positions
        present: Tensor,  # (B, M, C)
        states: Tensor,  # (B, T, C)
        query_weight: Tensor,  # (H, D, C)
        key_value_weight: Tensor,  # (H, 2, D, C)
    ) -> tuple[Tensor, ...]:
        ctx.sizes, ctx.block = sizes, present.size(1)
        ctx.save_for_backward(states, query_weight, key_value_weight)
        recent = states[:, -ctx.block :]
        heads = [size for size, _ in sizes]
        queries = [_projected(recent, weight) for weight in query_weight.split(heads)]
        lengths = [length for _, length in sizes]
        keys_values = [
            _projected(states[:, -length:], weight)
            for weight, length in zip(key_value_weight.split(heads), lengths, strict=True)
        ]
        return (*queries, *keys_values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, query_weight, key_value_weight = ctx.saved_tensors
        grad_queries, grad_keys_values = grads[: len(ctx.sizes)], grads[len(ctx.sizes) :]
        recent = states[:, -ctx.block :]
        rows = as_rows(recent)  # (B·M, C), as are the others
        grad_present = torch.empty_like(rows)
        grad_query_weight, grad_key_value_weight = torch.empty_like(query_weight), torch.empty_like(key_value_weight)
        first = 0
        for (size, length), grad_query, grad_both in zip(ctx.sizes, grad_queries, grad_keys_values, strict=True):
            heads, seen = slice(first, first + size), states[:, -length:]
            grad_query, grad_both = as_rows(grad_query.flatten(2), recent), grad_both.flatten(2)
            grad_present.addmm_(grad_query, query_weight[heads].flatten(0, 1), beta=min(first, 1))
            _add_products(grad_present, grad_both[:, -ctx.block :], key_value_weight[heads].flatten(0, 2), recent)
            torch.mm(grad_query.t(), rows, out=grad_query_weight[heads].flatten(0, 1))
            torch.mm(
                as_rows(grad_both, seen).t(), as_rows(seen), out=grad_key_value_weight[heads].flatten(0, 2)
            )  # (h·2·D, C)
            first += size
        return None, out_of_rows(grad_present, recent), None, grad_query_weight, grad_key_value_weight


def _projected(states: Tensor, weight: Tensor) -> Tensor:
    """(B, T, C), (h, …, C) → (B, T, h, …): one product where all rows lie one behind another, else one a row."""
    rows = weight.detach().flatten(0, -2)
    if is_positions_first(states):
        return out_of_rows(torch.mm(as_rows(states), rows.t()), states).unflatten(2, weight.shape[:-1])
    return torch.matmul(states, rows.t()).unflatten(2, weight.shape[:-1])


def _add_products(total: Tensor, grad: Tensor, weight: Tensor, like: Tensor) -> None:
    """Add (B, M, n) · (n, C) to `total`, (B·M, C), whose rows lie as those of `like`."""
    if is_positions_first(like):
        total.addmm_(as_rows(grad, like), weight)
    else:  # a product a row: they do not lie one behind another
        total.view(*grad.shape[:2], -1).baddbmm_(grad, weight.expand(len(grad), *weight.shape))


def _zeros(like: Tensor, length: int) -> Tensor:
    """Without biases, the key and value of a zero hidden state are zero."""
    return like.new_zeros(like.size(0), length, *like.shape[2:])


def by_groups(tensor: Tensor, dim: int, groups: Sequence[Group]) -> Tensor:
    """The heads in the order of the groups."""
    return _reorder(tensor, dim, tuple(head for heads, _ in groups for head in heads))


def out_of_groups(tensor: Tensor, dim: int, groups: Sequence[Group]) -> Tensor:
    """The heads in their own order again."""
    return _reorder(tensor, dim, _inverse(tuple(head for heads, _ in groups for head in heads)))


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _reorder(tensor: Tensor, dim: int, heads: tuple[int, ...]) -> Tensor:
    """The heads, in that order."""
    if heads == tuple(range(len(heads))):
        return tensor
    return _Reordered.apply(tensor, dim, order_on(tensor.device, heads), order_on(tensor.device, _inverse(heads)))


@functools.cache
def order_on(device: torch.device, heads: tuple[int, ...]) -> Tensor:
    """Return these numbers of heads, on the device, where they stay: a step that was captured as a graph reads them."""
    with torch.inference_mode(False):  # whoever asks first: training may ask next
        return torch.tensor(heads, dtype=torch.int32, device=device)


class _Reordered(OwnTypes):
    """A gradient is put back in order; torch, which knows nothing of the heads being each there once, would add up."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int, heads: Tensor, back: Tensor) -> Tensor:
        ctx.dim = dim
        ctx.save_for_backward(back)
        return tensor.index_select(dim, heads)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.index_select(ctx.dim, *ctx.saved_tensors), None, None, None
