"""The two contexts: hidden states in training, kept keys and values in inference.

In training, keys and values of the past are projected again in every step, so that the projections receive gradient
from cached positions. In inference neither weights nor spans change, so they are projected once and kept.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from adaptive_span.attention import HeadGroup, Projected
from adaptive_span.attention.head_groups import by_groups
from adaptive_span.attention.layout import as_rows, cat_positions, is_positions_first, out_of_rows
from adaptive_span.attention.own_types import OwnTypes

EPSILON = 1e-6  # of QK-norm
ProjectionWeights = tuple[Tensor, Tensor, Tensor]  # of queries, keys and values: (C, C) each


class HiddenStates:
    """Project hidden states for just the heads and positions that are asked for: the context of training."""

    def __init__(
        self, states: Tensor, present: Tensor, weights: ProjectionWeights, num_heads: int, qk_norm: bool = False
    ):
        """Take the hidden states of a layer.

        Args:
            states: the past and the present from `join`, (B, T, C): what is multiplied, and constants.
            present: the present block, (B, M, C), which receives the gradient of the last M of `states`.
            weights: of queries, keys and values, (C, C) each.
            num_heads: H.
            qk_norm: whether queries and keys are brought to one length.
        """
        self.states, self.present = states, present
        self.weights, self.num_heads, self.qk_norm = weights, num_heads, qk_norm
        self.dtype = states.dtype

    def project(self, groups: Sequence[HeadGroup]) -> list[Projected]:
        """Return what each group attends with. See `Context.project`."""
        query, key_value = head_weights(self.weights, self.num_heads, groups, self.dtype)
        sizes = [(len(heads), span + self.present.size(1)) for heads, span in groups]
        projected = ProjectionFunction.apply(sizes, self.present, self.states, query, key_value)
        queries, keys_values = projected[: len(groups)], projected[len(groups) :]
        if self.qk_norm:
            queries, keys_values = map(unit_queries, queries), map(with_unit_keys, keys_values)
        return list(map(Projected, queries, keys_values))


class KeysValues:
    """Join past keys and values, as they were projected once, with those of the present: the context of inference."""

    def __init__(
        self,
        past: Sequence[Tensor],
        present: Tensor,
        weights: ProjectionWeights,
        num_heads: int,
        qk_norm: bool = False,
    ):
        """Take the kept keys and values of a layer.

        Args:
            past: of each group the `next_past` of the block before, for the same groups, (B, T − M, h, 2, D); empty at
                the start.
            present: the hidden states of the present block, (B, M, C).
            weights: of queries, keys and values, (C, C) each.
            num_heads: H.
            qk_norm: whether queries and keys are brought to one length.

        Raises:
            RuntimeError: if gradients are enabled.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("keys and values are kept for inference: gradients would miss what they came from")
        self.past, self.present = past, present
        self.weights, self.num_heads, self.qk_norm = weights, num_heads, qk_norm
        self.dtype = self.present.dtype

    def project(self, groups: Sequence[HeadGroup]) -> list[Projected]:
        """Return what each group attends with. See `Context.project`."""
        sizes = [len(heads) for heads, _ in groups]
        weights = head_weights(self.weights, self.num_heads, groups, self.dtype)
        queries, present = (_projected(self.present, each).split(sizes, dim=2) for each in weights)
        if self.qk_norm:
            queries, present = list(map(unit_queries, queries)), list(map(with_unit_keys, present))
        past = self.past or [here[:, :0] for here in present]
        keys_values = [
            cat_positions([_zeros(before, span - before.size(1)), before, here])
            for before, here, (_, span) in zip(past, present, groups, strict=True)
        ]
        return list(map(Projected, queries, keys_values))


def next_past(keys_values: Sequence[Tensor], block_size: int) -> list[Tensor]:
    """Return what the next block needs of these keys and values.

    Args:
        keys_values: of each group, as attention returned them, (B, T, h, 2, D).
        block_size: M, the positions by which the next block lies further on.

    Returns:
        Of each group the last T − M positions, as views.
    """
    return [each[:, block_size:] for each in keys_values]


def join(past: Tensor, present: Tensor, reach: int) -> Tensor:
    """Join hidden states of the past and the present into one constant tensor.

    Args:
        past: (B, T, C).
        present: (B, M, C).
        reach: how many of the past to take, the last ones; zeros stand for what there is not.

    Returns:
        (B, reach + M, C), laid out as the present is.
    """
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


def unit_queries(queries: Tensor) -> Tensor:
    """Return queries, (…, D), with a mean square of 1 (QK-norm, arXiv 2010.04245), times 1/√D."""
    size = queries.size(-1)
    unit: Tensor = F.rms_norm(queries, (size,), eps=EPSILON / size)  # of what was scaled by 1/√D before
    return unit / math.sqrt(size)


def with_unit_keys(keys_values: Tensor) -> Tensor:
    """Return keys and values, (…, 2, D), laid out as they are, the keys with a mean square of 1; zeros stay zeros."""
    keys, size = keys_values[..., 0, :], keys_values.size(-1)
    scale = (keys.float().square().sum(-1, keepdim=True) / size + EPSILON).rsqrt().to(keys.dtype)  # (…, 1)
    scaled: Tensor = keys_values * torch.stack([scale, torch.ones_like(scale)], dim=-2)
    return scaled


def head_weights(
    weights: ProjectionWeights, num_heads: int, groups: Sequence[HeadGroup], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return what makes queries, (H, D, C), and keys and values, (H, 2, D, C), with heads in the order of the groups.

    Heads are put in order, and queries scaled, here, where they are small.
    """
    query, key, value = (weight.unflatten(0, (num_heads, -1)) for weight in weights)
    query = by_groups(query, 0, groups) * query.size(1) ** -0.5
    return query.to(dtype), by_groups(torch.stack([key, value], dim=1), 0, groups).to(dtype)


class ProjectionFunction(OwnTypes):
    """Project queries, keys and values of all groups, one matrix product each.

    The backward pass makes one sum of all that reaches the present hidden states, and no gradient of the past ones.
    """

    @staticmethod
    def forward(
        ctx: Any,
        sizes: Sequence[tuple[int, int]],  # heads of each group, and positions
        present: Tensor,  # (B, M, C)
        states: Tensor,  # (B, T, C)
        query_weight: Tensor,  # (H, D, C)
        key_value_weight: Tensor,  # (H, 2, D, C)
    ) -> tuple[Tensor, ...]:
        """Return the queries of all groups, (B, M, h, D), then their keys and values, (B, T, h, 2, D)."""
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
        """Return the gradients of the present hidden states, and of both weights unless they are frozen."""
        states, query_weight, key_value_weight = ctx.saved_tensors
        grad_queries, grad_keys_values = grads[: len(ctx.sizes)], grads[len(ctx.sizes) :]
        recent = states[:, -ctx.block :]
        grad_present = states.new_empty(recent.shape[:2].numel(), states.size(2))  # (B·M, C)
        is_learning = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]  # the weights
        grad_query_weight, grad_key_value_weight = (
            torch.empty_like(weight) if is_learning else None for weight in (query_weight, key_value_weight)
        )
        first = 0
        for (size, length), grad_query, grad_key_value in zip(ctx.sizes, grad_queries, grad_keys_values, strict=True):
            heads = slice(first, first + size)
            grad_query = grad_query.flatten(2)  # (B, M, h·D)
            grad_key_value = grad_key_value.flatten(2)  # (B, T, h·2·D)
            grad_present.addmm_(as_rows(grad_query, recent), query_weight[heads].flatten(0, 1), beta=min(first, 1))
            _add_products(grad_present, grad_key_value[:, -ctx.block :], key_value_weight[heads].flatten(0, 2), recent)
            first += size
            if grad_query_weight is None or grad_key_value_weight is None:
                continue
            _fill_with_products(grad_query_weight[heads].flatten(0, 1), grad_query, recent)
            _fill_with_products(grad_key_value_weight[heads].flatten(0, 2), grad_key_value, states[:, -length:])
        return None, out_of_rows(grad_present, recent), None, grad_query_weight, grad_key_value_weight


def _projected(states: Tensor, weight: Tensor) -> Tensor:
    """Return states (B, T, C) times a weight (h, …, C), as (B, T, h, …).

    It is one product where all rows lie one behind another, else one per row.
    """
    rows = weight.detach().flatten(0, -2)
    if is_positions_first(states):
        products = out_of_rows(torch.mm(as_rows(states), rows.t()), states)
    else:
        products = torch.matmul(states, rows.t())
    projected: Tensor = products.unflatten(2, weight.shape[:-1])
    return projected


def _add_products(total: Tensor, grad: Tensor, weight: Tensor, like: Tensor) -> None:
    """Add (B, M, n) · (n, C) to `total`, (B·M, C), whose rows lie as those of `like`."""
    if is_positions_first(like):
        total.addmm_(as_rows(grad, like), weight)
    else:  # a product per row: they do not lie one behind another
        total.view(*grad.shape[:2], -1).baddbmm_(grad, weight.expand(len(grad), *weight.shape))


def _fill_with_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Fill `total`, (m, n), with the sum over all rows of the batch of (B, T, m)ᵀ · (B, T, n)."""
    if is_positions_first(right) or right.dtype.itemsize == 2:
        torch.mm(as_rows(left, right).t(), as_rows(right), out=total)
    else:  # without a copy of rows that do not lie one behind another; 16 bits would be rounded after each of them
        total.addbmm_(left.transpose(1, 2), right, beta=0)


def _zeros(like: Tensor, length: int) -> Tensor:
    """Return zeros: without biases, the key and value of a zero hidden state are zero."""
    return like.new_zeros(like.size(0), length, *like.shape[2:])
