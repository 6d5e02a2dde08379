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
    """Learn one span per head (arXiv 1905.07799, section 2.1).

    The parameter is the fraction z / max_span, so that one learning rate fits every maximum. All that this module
    returns is in tokens.

    Args:
        num_heads: H.
        max_span: L, the tokens that a span cannot exceed.
        ramp: R ≥ 1, the tokens over which the mask falls from 1 to 0.
        init: the fraction of `max_span` that every span starts at, in [0, 1].

    Raises:
        ValueError: a number is not allowed.
    """

    def __init__(self, num_heads: int, max_span: int, ramp: int = 32, init: float = 0.0):
        super().__init__()
        if min(num_heads, max_span, ramp) < 1 or not 0 <= init <= 1:
            raise ValueError(
                f"num_heads={num_heads}, max_span={max_span} and ramp={ramp} must be at least 1, and init={init} a "
                f"fraction from 0 to 1"
            )
        self.max_span = max_span
        self.ramp = ramp
        self.fraction = nn.Parameter(torch.full((num_heads,), init))

    def tokens(self) -> Tensor:
        """Return z of each head, in tokens, without the ramp: (H,), differentiable, of 32 bits at least."""
        return self.fraction.to(torch.promote_types(self.fraction.dtype, torch.float32)) * self.max_span

    @torch.no_grad()
    def effective(self) -> Tensor:
        """Return how far each head sees, min(L, z + R) tokens, (H,)."""
        return (self.tokens() + self.ramp).clamp(max=self.max_span)

    def on_host(self) -> list[float]:
        """Return how far each head sees, in tokens, as Python numbers. It waits for the device.

        Raises:
            ValueError: a span is not finite.
        """
        spans: list[float] = self.effective().clamp(min=1).tolist()
        if not all(map(math.isfinite, spans)):
            raise ValueError(f"spans must be finite, not {spans}; the training has diverged, so take a lower rate")
        return spans

    def mask(self, distances: Tensor, include_self: bool = True) -> Tensor:
        """Return the soft mask of each head, query and key (equation 4).

        The mask is 0 beyond `max_span` and for keys after the query, where the distance is negative.

        Args:
            distances: the query's position minus the key's, in tokens, (M, K): positions[:, None] - positions, say.
            include_self: whether a query sees itself, at distance 0, where the mask then is 1. In the models here it
                does not.

        Returns:
            (H, M, K), in [0, 1], differentiable.

        Raises:
            TypeError: if `distances` is not a tensor of two dimensions.
        """
        if not isinstance(distances, Tensor) or distances.dim() != 2:
            given = f"a tensor {tuple(distances.shape)}" if isinstance(distances, Tensor) else repr(distances)
            raise TypeError(f"mask takes a tensor of distances (M, K), query position minus key position; not {given}")
        seen = (distances >= 0 if include_self else distances > 0) & (distances <= self.max_span)
        spans = self.tokens()[:, None, None]
        return ramp_height(spans, self.ramp, distances.to(spans)).clamp(0, 1) * seen

    def penalty(self) -> Tensor:
        """Return the mean of z over the heads, in tokens: the term of equation 5 before its coefficient."""
        return self.tokens().mean()

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring every span back into [0, max_span]."""
        self.fraction.clamp_(0, 1)


def log_soft_mask(spans: Tensor, ramp: int, length: int) -> Tensor:
    """Return the logarithm of the soft mask, for softmax(score + log m).

    It is −inf beyond d = R + 1 + z. At exactly that distance, where a span of 0 starts, m is 0 but grows with z. It is
    given a weight below any rounding there, so that the span feels what it would gain by growing.

    Args:
        spans: z of each head in tokens, (H,).
        ramp: R, in tokens.
        length: the largest distance, in tokens.

    Returns:
        log m(d) at d = `length` … 1, (H, length).
    """
    distances = torch.arange(length, 0, -1, device=spans.device, dtype=spans.dtype)
    height = ramp_height(spans[:, None], ramp, distances)
    return torch.where(height >= 0, (height.clamp(0, 1) + 1e-20).log(), float("-inf"))


def ramp_height(spans: Tensor, ramp: int, distances: Tensor) -> Tensor:
    """Return (ramp + 1 + z − d) / ramp, which is m(d) once it is clamped to [0, 1]."""
    return (ramp + 1 + spans - distances) / ramp


def upper_bound(effective_span: float, max_span: int) -> int:
    """Return a whole number of tokens beyond which a head sees nothing.

    It is a multiple of 32 or the maximum, so that shapes do not change with every update of a span.

    Args:
        effective_span: how far the head sees, in tokens.
        max_span: L, in tokens.
    """
    return min(max_span, math.ceil((math.floor(effective_span) + 1) / STEP) * STEP)
