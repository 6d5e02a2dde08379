"""What a layer knows of the past and the present, offered to attention as keys and values.

B batch, H heads, h heads of a group, D head size, C hidden size, M block, T positions before it.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from adaptive_span.own_types import OwnTypes

Group = tuple[Sequence[int], int]  # some heads, and how many of the last positions they want


class Context(Protocol):
    """The seam between the model and attention: no attention sees hidden states, no model sees bands or tiles."""

    def keys_values(self, groups: Sequence[Group]) -> list[Tensor]:
        """For each group of heads, of which each is in one group, its keys and values (B, 2, h, D, length) at the last
        `length` positions (the present block's included), oldest first; zeros before the first known one."""
        ...


class HiddenStates:
    """The training context: hidden states, projected for just the heads and positions that are asked for, so that the
    projections receive gradient from the cached positions too."""

    def __init__(self, past: Tensor, present: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int):
        self.past, self.present = past, present  # (B, T, C), a constant; (B, M, C)
        self.weights = torch.stack([key_weight, value_weight]).unflatten(1, (num_heads, -1))  # (2, H, D, C)

    def keys_values(self, groups: Sequence[Group]) -> list[Tensor]:
        sizes = [len(heads) for heads, _ in groups]
        weights = by_groups(self.weights, 1, groups)
        present = project(weights, self.present).split(sizes, dim=2)  # every head sees the present block
        block, found = self.present.size(1), []
        for (_, length), own, here in zip(groups, weights.split(sizes, dim=1), present, strict=True):
            past = self.past[:, max(0, self.past.size(1) + block - length) :]
            found.append(_joined(project(own, past) if past.size(1) else here[..., :0], here, length))
        return found


class KeysValues:
    """The inference context: past keys and values as they were projected once, no further back than a group looks.

    `past` is what `kept` was after the block before, for the same groups; empty at the start.
    """

    def __init__(
        self, past: Sequence[Tensor], present: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int
    ):
        if torch.is_grad_enabled():
            raise RuntimeError("keys and values are kept for inference: gradients would miss what they came from")
        self.past, self.present = past, present  # for each group (B, 2, h, D, T); (B, M, C)
        self.weights = torch.stack([key_weight, value_weight]).unflatten(1, (num_heads, -1))  # (2, H, D, C)
        self.kept: list[Tensor] = []

    def keys_values(self, groups: Sequence[Group]) -> list[Tensor]:
        present = project(by_groups(self.weights, 1, groups), self.present)
        present = present.split([len(heads) for heads, _ in groups], dim=2)
        past = self.past or [here[..., :0] for here in present]
        found = [_joined(before, here, length) for before, here, (_, length) in zip(past, present, groups, strict=True)]
        self.kept = [both[..., self.present.size(1) :] for both in found]
        return found


def project(weights: Tensor, hidden: Tensor) -> Tensor:
    """(2, h, D, C), (B, T, C) → keys and values (B, 2, h, D, T)"""
    rows = in_autocast(weights.flatten(0, 2))  # by itself it would cast a copy of them for every row of the batch
    return torch.bmm(rows.expand(hidden.size(0), -1, -1), hidden.transpose(1, 2)).unflatten(1, weights.shape[:3])


def in_autocast(tensor: Tensor) -> Tensor:
    """In the precision that matrix products are made in."""
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


def _joined(past: Tensor, present: Tensor, length: int) -> Tensor:
    """(B, 2, h, D, length): without biases, the key and value of a zero hidden state before the first are zero."""
    zeros = present.new_zeros(*present.shape[:4], length - past.size(4) - present.size(4))
    return torch.cat([zeros, past, present], dim=4)


def by_groups(tensor: Tensor, dim: int, groups: Sequence[Group]) -> Tensor:
    """The heads in the order of the groups."""
    return _reorder(tensor, dim, [head for heads, _ in groups for head in heads])


def out_of_groups(tensor: Tensor, dim: int, groups: Sequence[Group]) -> Tensor:
    """The heads in their own order again."""
    return _reorder(tensor, dim, _inverse([head for heads, _ in groups for head in heads]))


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _reorder(tensor: Tensor, dim: int, heads: Sequence[int]) -> Tensor:
    """The heads, in that order."""
    if list(heads) == list(range(len(heads))):
        return tensor
    back = _inverse(heads)
    both = torch.tensor([heads, back], pin_memory=tensor.is_cuda)  # so that the host need not wait
    return _Reordered.apply(tensor, dim, *both.to(tensor.device, non_blocking=True))


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
