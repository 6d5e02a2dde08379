"""What a layer knows of the past and the present, offered to attention as keys and values."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

Group = tuple[Sequence[int], int]  # some heads, and how many of the last positions they want


class Context(Protocol):
    """The seam between the model and attention: no attention sees hidden states, no model sees bands or tiles."""

    def keys_values(self, groups: Sequence[Group]) -> list[tuple[Tensor, Tensor]]:
        """For each group of heads, of which each is in one group, its keys and values (B, h, length, D) at the last
        `length` positions (the present block's included), oldest first; zeros before the first known one."""
        ...


class HiddenStates:
    """The training context: hidden states, projected for just the heads and positions that are asked for, so that the
    projections receive gradient from the cached positions too."""

    def __init__(self, past: Tensor, present: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int):
        self.past, self.present = past, present  # (B, T, C), a constant; (B, M, C)
        self.weights = torch.stack([key_weight, value_weight]).unflatten(1, (num_heads, -1))  # (2, H, D, C)

    def keys_values(self, groups: Sequence[Group]) -> list[tuple[Tensor, Tensor]]:
        sizes = [len(heads) for heads, _ in groups]
        weights = reorder(self.weights, 1, [head for heads, _ in groups for head in heads])
        present = self._project(weights, self.present).split(sizes, dim=2)  # every head sees the present block
        block, known = self.present.size(1), self.past.size(1)
        found = []
        for (_, length), own, here in zip(groups, weights.split(sizes, dim=1), present, strict=True):
            parts, asked = [here], length - block
            if asked > 0 and known:
                parts.insert(0, self._project(own, self.past[:, -asked:]))
            if asked > known:  # without biases, the key and value of a zero hidden state are zero
                parts.insert(0, here.new_zeros(*here.shape[:4], asked - known))
            both = torch.cat(parts, dim=4)[..., -length:]  # (B, 2, h, D, length): positions are innermost in memory
            key, value = both.transpose(3, 4).unbind(1)
            found.append((key, value))
        return found

    @staticmethod
    def _project(weights: Tensor, hidden: Tensor) -> Tensor:
        """(2, h, D, C), (B, T, C) → (B, 2, h, D, T)"""
        rows = weights.flatten(0, 2).expand(hidden.size(0), -1, -1)
        return torch.bmm(rows, hidden.transpose(1, 2)).unflatten(1, weights.shape[:3])


def reorder(tensor: Tensor, dim: int, heads: Sequence[int]) -> Tensor:
    """The heads, in that order."""
    if list(heads) == list(range(len(heads))):
        return tensor
    return tensor.index_select(dim, torch.tensor(heads, device=tensor.device))
