"""Persistent memory (arXiv 1907.01470, section 4): learned keys and values in place of the feed-forward."""

import math

import torch
from torch import Tensor, nn


class PersistentMemory(nn.Module):
    """Learn N key and value vectors per head, attended to in one softmax with the context.

    They are stored at unit variance times 1/√D and 1/√N, and used at unit variance: one learning rate fits every size.

    Args:
        num_heads: H.
        head_size: D.
        size: N, vectors per head.
    """

    def __init__(self, num_heads: int, head_size: int, size: int):
        super().__init__()
        self.key = nn.Parameter(torch.randn(num_heads, head_size, size) / math.sqrt(head_size))
        self.value = nn.Parameter(torch.randn(num_heads, size, head_size) / math.sqrt(size))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return keys, (H, D, N), and values, (H, N, D), as attention uses them."""
        _, head_size, size = self.key.shape
        return self.key * math.sqrt(head_size), self.value * math.sqrt(size)
