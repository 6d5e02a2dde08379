"""Persistent memory (arXiv 1907.01470): learned keys and values that take the place of the feed-forward."""

import math

import torch
from torch import Tensor, nn


class PersistentMemory(nn.Module):
    """N key and value vectors for each head, attended to in one softmax with the context.

    Kept at unit variance times 1/√D and 1/√N, and used at unit variance, so that one learning rate fits every size.
    """

    def __init__(self, num_heads: int, head_size: int, size: int):
        super().__init__()
        self.key = nn.Parameter(torch.randn(num_heads, head_size, size) / math.sqrt(head_size))
        self.value = nn.Parameter(torch.randn(num_heads, size, head_size) / math.sqrt(size))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys (H, D, N) and values (H, N, D), as attention uses them."""
        _, head_size, size = self.key.shape
        return self.key * math.sqrt(head_size), self.value * math.sqrt(size)
