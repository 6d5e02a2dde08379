"""How far the query heads of one layer of a transformers model look: learned spans, or windows."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adaptive_span.attention.span import AdaptiveSpan, ramp_height

ROUNDING = 1e-3  # tokens: a span is kept as a fraction in fp32, and a whole number of tokens shall stay one


class HeadSpans(nn.Module):
    """Say how far each query head of a layer looks: a soft mask whose span can learn, or a window.

    At the distance x from a query to a key, in tokens, a soft mask weighs the key by `AdaptiveSpan.mask`. A window of w
    lets a head see the w tokens before the query as they are, and no others. Both see the query's own token and the
    first `sinks` tokens of the text always. A head whose span is `max_span` sees all there is, beyond it too.

    Args:
        num_heads: H, the query heads.
        max_span: L, the length of the text that spans are fitted on, in tokens.
        ramp: R, in tokens.
        sinks: the first tokens that every later one sees.
    """

    windows: Tensor

    def __init__(self, num_heads: int, max_span: int, ramp: int, sinks: int):
        super().__init__()
        self.span = AdaptiveSpan(num_heads, max_span, ramp, init=1.0)
        self.sinks = sinks
        self.is_hard = False
        self.register_buffer("windows", torch.full((num_heads,), max_span), persistent=False)  # tokens
        self.known: tuple[int, list[int]] | None = None

    @torch.no_grad()
    def set_(self, spans: Sequence[float]) -> None:
        """Let each head see so many tokens, with the ramp of a soft mask, (H,)."""
        self.is_hard = False
        tokens = torch.tensor(spans, dtype=torch.float32).to(self.span.fraction.device)
        whole = tokens >= self.span.max_span
        self.span.fraction.copy_(torch.where(whole, 1.0, (tokens - self.span.ramp) / self.span.max_span))

    @torch.no_grad()
    def harden_(self) -> None:
        """Replace the soft masks by windows that reach as far as those do, so that the cache is the same."""
        self.windows.copy_((self.span.effective() - ROUNDING).ceil())
        self.is_hard = True

    def kept(self, kv_heads: int) -> Tensor:
        """Return the share of a text of `max_span` tokens that each key/value head keeps, (G,)."""
        longest = self.span.effective().view(kv_heads, -1).max(1).values.ceil()
        return ((longest + self.sinks) / self.span.max_span).clamp(max=1)

    def bounds(self, length: int) -> list[int]:
        """Return for each head how many tokens before the present one it sees in a text of so many tokens, (H,).

        It waits for the device once per change of the spans, unless `remember` was told of it.
        """
        if self.known is None or self.known[0] != self._changes:
            self.remember(self.windows.tolist() if self.is_hard else self.span.on_host())
        assert self.known is not None
        return [length if bound >= self.span.max_span else min(bound, length) for bound in self.known[1]]

    def remember(self, tokens: Sequence[float]) -> None:
        """Take how far each head sees now, (H,), from someone who has read it from the device."""
        self.known = self._changes, [max(1, math.ceil(each)) for each in tokens]

    @property
    def _changes(self) -> int:
        return self.span.fraction._version + self.windows._version

    def log_mask(self, distances: Tensor) -> Tensor:
        """Return log m of each head at distances ≥ 1, in tokens: (H, …); −inf where a head does not see."""
        longest, shape = self.span.max_span, (-1, *[1] * distances.dim())
        if self.is_hard:
            windows = self.windows.view(shape)
            seen = (distances <= windows) | (windows >= longest)
            return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, float("-inf"))
        spans = self.span.tokens().clamp(min=0).view(shape)
        sees_all = spans + self.span.ramp >= longest  # nothing was learned about what is farther than the fitted text
        distances = torch.where(sees_all, distances.clamp(max=longest - 1), distances).to(spans.dtype)
        height = ramp_height(spans, self.span.ramp, distances).clamp(max=1)
        seen = height > 0
        return torch.where(seen, torch.where(seen, height, 1.0).log(), float("-inf"))
