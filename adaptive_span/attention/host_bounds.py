"""Bounds on the spans of a layer in anyone's training loop, which reads the device seldom."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adaptive_span.attention.own_types import uncompiled
from adaptive_span.attention.span import AdaptiveSpan
from adaptive_span.attention.span_bounds import fresh


class HostBounds:
    """Keep whole numbers of tokens that the effective spans of a layer do not exceed in training.

    The bounds leave the spans room to grow, and `clamp_` holds the spans below them. After some updates it reads the
    spans off the device, which waits for it, and renews the bounds: before a span has used up half of its room, if it
    keeps growing at its rate. If anything else has changed the spans, they are read before they are used.

    Args:
        every: the most updates between two readings.
    """

    def __init__(self, every: int):
        self.every = every
        self.forget()

    def __reduce__(self) -> tuple[type["HostBounds"], tuple[int]]:
        """Copy and pickle nothing but the settings: a copy of a layer has spans of its own."""
        return HostBounds, (self.every,)

    def forget(self) -> None:
        """Read the spans before they are used next."""
        self.bounds: Sequence[int] = []
        self.known: tuple[Tensor, int, int] | None = None  # the spans that the bounds are known to hold
        self.spans: list[float] = []  # effective, in tokens, when they were read last
        self.wait, self.updates = 1, 0

    @uncompiled
    def of(self, span: AdaptiveSpan) -> Sequence[int]:
        """Return the bounds, (H,), in tokens."""
        if not self._knows(span.fraction):
            self.refresh(span)
        return self.bounds

    def refresh(self, span: AdaptiveSpan) -> None:
        """Read the spans off the device, and renew the bounds."""
        length, ramp = span.max_span, span.ramp
        before, self.spans = self.spans, span.on_host()
        [self.bounds] = fresh([self.spans], length)
        self.wait, self.updates = self._updates_to_wait(before, length), 0
        highest = [max(0, bound - ramp) / length if bound < length else 1.0 for bound in self.bounds]
        self.highest = torch.tensor(highest).to(span.fraction)
        self._know(span.fraction)

    @torch.no_grad()
    def clamp_(self, span: AdaptiveSpan) -> None:
        """Bring every span back to at least 0 and at most its bound, and count an update."""
        span.clamp_()
        self.updates += 1
        if not self.bounds or self.highest.device != span.fraction.device:
            self.refresh(span)
            return
        span.fraction.clamp_(max=self.highest)
        if self.updates >= self.wait:
            self.refresh(span)
        self._know(span.fraction)

    def _updates_to_wait(self, before: list[float], max_span: int) -> int:
        """Return after how many updates a span may have used up half of its room."""
        if len(before) != len(self.spans) or not self.updates:  # nothing is known of their growth
            return 1
        heads = zip(before, self.spans, self.bounds, strict=True)
        growing = [(now - then, bound - now) for then, now, bound in heads if now > then and bound < max_span]
        fewest = min((self.updates * room / (2 * growth) for growth, room in growing), default=self.every)
        return max(1, min(self.every, int(fewest)))

    def _know(self, fraction: Tensor) -> None:
        self.known = None if fraction.is_inference() else (fraction, fraction._version, fraction.data_ptr())

    def _knows(self, fraction: Tensor) -> bool:
        if self.known is None or self.known[0] is not fraction:
            return False
        return self.known[1:] == (fraction._version, fraction.data_ptr())
