"""Bounds on the spans of a layer in anyone's training loop, which reads the device seldom."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adaptive_span.attention.own_types import uncompiled
from adaptive_span.attention.span import AdaptiveSpan
from adaptive_span.attention.span_bounds import fresh


class HostBounds:
    """Keep whole numbers of tokens that the effective spans of a layer do not exceed.

    The bounds leave the spans room to grow. To read the spans off the device waits for it, so that bounds are renewed
    only when the spans have changed since: in training after every so many changes, in evaluation at once.

    Args:
        span: the spans.
        every: changes of the spans after which bounds are renewed in training.
    """

    def __init__(self, span: AdaptiveSpan, every: int):
        self.span, self.every = span, every
        self.bounds: Sequence[int] = []
        self.version, self.changes = -1, 0

    @uncompiled
    def current(self, training: bool) -> Sequence[int]:
        """Return the bounds, (H,), in tokens."""
        if self.span.fraction._version != self.version:
            self.version, self.changes = self.span.fraction._version, self.changes + 1
            if not self.bounds or not training or self.changes >= self.every:
                self.refresh()
        return self.bounds

    def forget(self) -> None:
        """Renew the bounds when they are next needed, whatever the mode: the spans are others."""
        self.bounds, self.version = [], -1

    def refresh(self) -> None:
        """Read the spans off the device, and renew the bounds."""
        [self.bounds] = fresh([self.span.effective().clamp(min=1).tolist()], self.span.max_span)
        self.version, self.changes = self.span.fraction._version, 0
        length, ramp = self.span.max_span, self.span.ramp
        highest = [(bound - ramp) / length if bound < length else 1.0 for bound in self.bounds]
        self.highest: Tensor = torch.tensor(highest).to(self.span.fraction)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring every span back to at least 0 and at most its bound."""
        self.span.clamp_()
        if not self.bounds or self.highest.device != self.span.fraction.device:
            self.refresh()
        self.span.fraction.clamp_(max=self.highest)
