"""The learned attention span (arXiv 1905.07799, section 2.1): how far each head looks, and what that costs.

It plugs into any attention: multiply the weights (B, H, M, K) by `mask` and divide them by their sum again, add
`penalty` to the loss, `clamp_` after each update.
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
        """Return how far each head sees, in tokens: min(max_span, z + ramp). (H,)"""
        return (self.tokens() + self.ramp).clamp(max=self.max_span)

    def mask(self, distances: Tensor, include_self: bool = True) -> Tensor:
        """Return equation 4 for each head, query and key: (M, K) → (H, M, K) in [0, 1].

        A distance is the query's position minus the key's: positions[:, None] - positions, say. The mask is 0 beyond
        `max_span` and for keys after the query, where the distance is negative. At distance 0, the query itself, it is
        1, or 0 without `include_self`, as in the models here.
        """
        if not isinstance(distances, Tensor) or distances.dim() != 2:
            given = f"a tensor {tuple(distances.shape)}" if isinstance(distances, Tensor) else repr(distances)
            raise TypeError(f"mask takes a tensor of distances (M, K), query position minus key position; not {given}")
        seen = (distances >= 0 if include_self else distances > 0) & (distances <= self.max_span)
        return _ramp(self.tokens()[:, None, None], self.ramp, distances.to(self.fraction)).clamp(0, 1) * seen

    def penalty(self) -> Tensor:
        """The mean span over the heads, in tokens: the term of equation 5 before its coefficient."""
        return self.tokens().mean()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring every span back into [0, max_span]."""
        self.fraction.clamp_(0, 1)


def log_soft_mask(spans: Tensor, ramp: int, length: int) -> Tensor:
    """log m(d) at d = `length` … 1, for softmax(score + log m): (H, length), −inf beyond d = ramp + 1 + z.

    At exactly that distance, where a span of 0 starts, m is 0 but grows with z. It is given a weight below any
    rounding there, so that the span feels what it would gain by growing.
    """
    distances = torch.arange(length, 0, -1, device=spans.device, dtype=spans.dtype)
    height = _ramp(spans[:, None], ramp, distances)
    return torch.where(height >= 0, (height.clamp(0, 1) + 1e-20).log(), float("-inf"))


def _ramp(spans: Tensor, ramp: int, distances: Tensor) -> Tensor:
    """Return (ramp + 1 + z − d) / ramp, which is m(d) once it is clamped to [0, 1]."""
    return (ramp + 1 + spans - distances) / ramp


def upper_bound(effective_span: float, max_span: int) -> int:
    """A whole number of tokens, in steps of 32, beyond which a head with this effective span sees nothing.

    In steps, so that shapes do not change with every update of a span.
    """
    return min(max_span, math.ceil((math.floor(effective_span) + 1) / STEP) * STEP)
