"""The learned attention span (arXiv 1905.07799, section 2.1): how far each head looks, and what that costs.

It plugs into any attention: multiply the weights by `mask`, add `penalty` to the loss, `clamp_` after each update.
"""

import math

import torch
from torch import Tensor, nn

STEP = 32  # tokens
SLACK = 8  # tokens that a span may grow by in one update of a training; published ones grow by less than one


class AdaptiveSpan(nn.Module):
    """One learned span a head.

    The parameter is the fraction z / max_span, so that one learning rate fits every maximum. All that this module
    returns is in tokens.
    """

    def __init__(self, num_heads: int, max_span: int, ramp: int = 32, init: float = 0.0):
        super().__init__()
        self.max_span = max_span
        self.ramp = ramp
        self.fraction = nn.Parameter(torch.full((num_heads,), init))

    def tokens(self) -> Tensor:
        """z of each head, in tokens, without the ramp: (H,), differentiable."""
        return self.fraction * self.max_span

    @torch.no_grad()
    def effective(self) -> Tensor:
        """How far each head sees, in tokens: min(max_span, z + ramp). (H,)"""
        return (self.tokens() + self.ramp).clamp(max=self.max_span)

    def mask(self, length: int) -> Tensor:
        """Equation 4 at distances `length` … 1, oldest first: (H, length) in [0, 1]."""
        return soft_mask(self.tokens(), self.ramp, length)

    def penalty(self) -> Tensor:
        """The mean span over the heads, in tokens: the term of equation 5 before its coefficient."""
        return self.tokens().mean()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring every span back into [0, max_span]."""
        self.fraction.clamp_(0, 1)


def soft_mask(spans: Tensor, ramp: int, length: int) -> Tensor:
    """m(d) = clamp((ramp + 1 + z − d) / ramp, 0, 1) at d = `length` … 1, for spans z (H,) in tokens: (H, length)."""
    return _ramp(spans, ramp, length).clamp(0, 1)


def log_soft_mask(spans: Tensor, ramp: int, length: int) -> Tensor:
    """log m(d), for softmax(score + log m): (H, length), −inf beyond d = ramp + 1 + z.

    At exactly that distance, where a span of 0 starts, m is 0 but grows with z. It is given a weight below any
    rounding there, so that the span feels what it would gain by growing.
    """
    height = _ramp(spans, ramp, length)
    return torch.where(height >= 0, (height.clamp(0, 1) + 1e-20).log(), float("-inf"))


def _ramp(spans: Tensor, ramp: int, length: int) -> Tensor:
    distance = torch.arange(length, 0, -1, device=spans.device, dtype=spans.dtype)
    return (ramp + 1 + spans[:, None] - distance) / ramp


def upper_bound(effective_span: float, max_span: int) -> int:
    """A whole number of tokens, in steps of 32, beyond which a head with this effective span sees nothing.

    In steps, so that shapes do not change with every update of a span.
    """
    return min(max_span, math.ceil((math.floor(effective_span) + 1) / STEP) * STEP)
