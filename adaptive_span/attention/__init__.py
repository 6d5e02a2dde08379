"""What does a head see, and how is that computed at the cost of its span?

It may import `hardware` and below. This file is the contract: what an implementation is given (a `Context`, the learned
position embedding, the `SpanGeometry` of the layer) and what it returns (`Attended`). An implementation never sees
hidden states, and the model never sees bands or tiles. `dense` is the definition, `banded` and `fused` compute the same
at the cost of each head's own span, and `dispatch` chooses.

A query attends to the L positions before it, at distances d = 1 … L, and never to itself:

    s(d) = (q · k(t−d) + q · p_d) / √D              score
    m(d) = clamp((R + 1 + z − d) / R, 0, 1)         soft mask of a head's span z, with ramp R
    a(d) = m(d) exp s(d) / Σ m(d′) exp s(d′)        weight, computed as softmax(s + log m)
    y    = Σ a(d) v(t−d)                            output

This is section 2 of arXiv 1905.07799, whose mask m_z(x) has x = d − 1. Persistent memory (arXiv 1907.01470, section 4)
adds N keys and values that every query of a head sees, under the same softmax, with the score q · k / √D and m = 1.

The letters of all shapes here:

    B  rows of the batch            D  head size                 L  maximum span, tokens
    H  heads of a layer             C  hidden size, H · D        S  span of a group's longest head, tokens
    h  heads of a group             N  persistent vectors        T  positions, S + M: the block is the last M
    M  block: queries of a row      K  keys                      R  ramp, tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from adaptive_span.attention.head_groups import HeadGroup
from adaptive_span.attention.span import log_soft_mask

# Finite: a query that may see nothing weighs zero values, and no number is lost. A power of two: where a GPU takes its
# product with log₂e and the difference from another such product in one instruction, it finds the exact 0.
HIDDEN = -(2.0**66)
MemoryKeysValues = tuple[Tensor, Tensor]  # persistent keys (H, D, N) and values (H, N, D)


@dataclass(frozen=True)
class SpanGeometry:
    """Describe how far each head of a layer looks.

    The device knows the spans exactly: they decide what is computed. The host knows bounds on them: they decide the
    sizes of tensors. So nothing waits for the device.

    Args:
        spans: z of each head in tokens, without the ramp, (H,); None where every head sees all L positions.
        ramp: R, the tokens over which the soft mask falls from 1 to 0.
        bounds: for each head a whole number of tokens, at least 1, that its effective span does not exceed.
        given_mask: log m(d), oldest first, (H, S), where it is not that of `spans`: it may fall to both sides.
    """

    spans: Tensor | None
    ramp: int
    bounds: Sequence[int]
    given_mask: Tensor | None = None

    @property
    def longest(self) -> int:
        """Return the largest bound, in tokens."""
        return max(self.bounds)

    def log_mask(self) -> Tensor | None:
        """Return log m(d) of each head as far as the largest bound, oldest first, (H, S); None without spans."""
        if self.given_mask is not None or self.spans is None:
            return self.given_mask
        return log_soft_mask(self.spans, self.ramp, self.longest)


class Projected(NamedTuple):
    """Hold queries, keys and values of a group of heads. Positions run from the oldest to the newest."""

    query: Tensor  # (B, M, h, D), times 1 / √D
    keys_values: Tensor  # (B, T, h, 2, D)
    key_bias: Tensor | None = None  # (B, T), added to the scores of each key: 0, or HIDDEN where there is none to see


class Context(Protocol):
    """Offer what a layer knows of the past and the present as queries, keys and values."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of queries, keys and values."""
        ...

    def project(self, groups: Sequence[HeadGroup]) -> list[Projected]:
        """Return queries of the present block, and keys and values there and on the `span` positions before it.

        Args:
            groups: heads, each in one group, and how far back each group looks.

        Returns:
            For each group its `Projected`. What is before the first known position has zeros for its key and value.
        """
        ...


class Attended(NamedTuple):
    """Hold what attention returns."""

    output: Tensor  # (B, M, H, D), with heads in their own order
    keys_values: list[Tensor]  # what the context gave for each group, (B, T, h, 2, D): a KV cache keeps their ends


class Attend(Protocol):
    """Compute the attention of one layer, as the definition above has it."""

    def __call__(
        self,
        context: Context,
        position_embedding: Tensor,
        geometry: SpanGeometry,
        dropout: float = 0.0,
        memory: MemoryKeysValues | None = None,
    ) -> Attended:
        """Return the outputs of all heads.

        Args:
            context: gives queries, keys and values for the heads and positions that it is asked for.
            position_embedding: p, one learned vector per distance, oldest first, (D, L): the last column is d = 1.
                (D, 0) is none: then there are no such products.
            geometry: how far each head looks.
            dropout: probability with which an attention weight is dropped; 0 outside training.
            memory: persistent keys (H, D, N) and values (H, N, D), or None.

        Returns:
            The outputs (B, M, H, D), and the keys and values of each group that the context was asked for.
        """
        ...


__all__ = ["HIDDEN", "Attend", "Attended", "Context", "HeadGroup", "MemoryKeysValues", "Projected", "SpanGeometry"]
