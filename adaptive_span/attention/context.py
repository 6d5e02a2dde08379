"""What a layer knows of the past and the present, offered to attention as keys and values."""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Context(Protocol):
    """The seam between the model and attention: no attention sees hidden states, no model sees bands or tiles."""

    def keys_values(self, heads: slice, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, h, length, D) of some heads, at the last `length` positions (the present block's
        included), oldest first. Positions before the first known one are zeros."""
        ...


class HiddenStates:
    """The training context: hidden states, projected for just the heads and positions that are asked for, so that the
    projections receive gradient from the cached positions too."""

    def __init__(self, hidden: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int):
        self.hidden = hidden  # (B, T + M, C), the cache and then the present block
        self.key_weight, self.value_weight = key_weight, value_weight  # (C, C)
        self.head_size = key_weight.size(0) // num_heads

    def keys_values(self, heads: slice, length: int) -> tuple[Tensor, Tensor]:
        hidden = self.hidden[:, -length:]
        key, value = (
            F.linear(hidden, weight.view(-1, self.head_size, weight.size(1))[heads].flatten(0, 1))
            .unflatten(2, (-1, self.head_size))
            .transpose(1, 2)
            for weight in (self.key_weight, self.value_weight)
        )
        missing = length - hidden.size(1)
        if missing > 0:  # without biases, the key and value of a zero hidden state are zero
            key, value = (F.pad(x, (0, 0, missing, 0)) for x in (key, value))
        return key, value
