"""The input layer of a vocabulary that fits in one table."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adaptive_span.attention.own_types import OwnTypes

LARGEST = 1024  # symbols whose gradient is a matrix product


class Embedding(nn.Embedding):
    """Look up a vector for each symbol. On a GPU too, the same step gives the same bits.

    Args:
        vocab_size: V.
        hidden_size: C.
        is_shared: whether an output layer scores symbols by these vectors. Then they are stored at a variance of 1/C,
            as scores need them, and looked up at 1.
    """

    def __init__(self, vocab_size: int, hidden_size: int, is_shared: bool = False):
        super().__init__(vocab_size, hidden_size)
        self.scale = hidden_size**0.5 if is_shared else None
        if is_shared:
            nn.init.normal_(self.weight, std=hidden_size**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors, (B, M, C), of symbols (B, M)."""
        if self.weight.is_cuda and self.num_embeddings <= LARGEST:
            vectors: Tensor = Lookup.apply(tokens, self.weight)
        else:
            vectors = super().forward(tokens)
        return vectors if self.scale is None else vectors * self.scale


class Lookup(OwnTypes):
    """`F.embedding` whose gradient is a product with a matrix of zeros and ones, always summed up in one order.

    On a GPU, torch's own differs between two runs where each of a few symbols stands in many places.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor) -> Tensor:
        """Return the rows of the weight, (V, C), at tokens (…)."""
        ctx.save_for_backward(tokens)
        ctx.size = len(weight)
        return F.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        """Return the gradient of the weight, (V, C)."""
        (tokens,) = ctx.saved_tensors
        symbols = torch.arange(ctx.size, device=tokens.device)
        places = (symbols[:, None] == tokens.flatten()).to(grad.dtype)  # (V, B·M)
        return None, places @ grad.flatten(0, 1)
