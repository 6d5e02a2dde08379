"""A self-attention layer for your own model, whose heads each learn how far to look and cost that much."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adaptive_span.attention.functional import adaptive_attention, bounds_of
from adaptive_span.attention.host_bounds import HostBounds
from adaptive_span.attention.own_types import uncompiled
from adaptive_span.attention.rotary import rotate
from adaptive_span.attention.span import AdaptiveSpan

POSITIONS = ("relative", "rotary", None)


@dataclass(frozen=True)
class AttentionCache:
    """Hold what a stream's next block sees of the blocks before; `AttentionCache()` is a stream's start."""

    key: Tensor | None = None  # (B, G, K, D)
    value: Tensor | None = None  # (B, G, K, D)
    padding: Tensor | None = None  # (B, K)
    position: int = 0  # of the next token in its text


class AdaptiveAttention(nn.Module):
    """Attend from every position of a sequence to those within the learned span of each head.

    It takes the place of `torch.nn.MultiheadAttention(hidden_size, num_heads, batch_first=True)` as self-attention.
    In a training loop, add `span_penalty()` times a coefficient to the loss and call `clamp_spans_()` after each update
    (arXiv 1905.07799, section 2).

    Args:
        hidden_size: C.
        num_heads: H, which divides C into heads of D.
        max_span: L, the tokens that no span exceeds, on each side.
        num_kv_heads: G key/value heads, which divides H (grouped-query attention); H where not given.
        causal: whether a query sees what is before it alone. Else each head learns a span to each side.
        include_self: whether a query sees its own position.
        positions: `relative` is one learned vector per distance, as in the paper; `rotary` turns queries and keys;
            None is neither.
        ramp: R, the tokens over which the mask of a span falls from 1 to 0.
        span_init: the fraction of `max_span` that every span starts at, in [0, 1].
        dropout: the probability with which an attention weight is dropped in training.
        bias: whether the four projections have biases.
        implementation: auto, dense, banded or fused. See `adaptive_attention`.
        refresh_every: the most updates after which the host reads in training how far the spans have grown; fewer while
            they grow fast. In between a span may grow by 8 tokens at least, or by 3 % of it where that is more.

    Raises:
        ValueError: A size does not divide another, or a value is not allowed.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        max_span: int,
        *,
        num_kv_heads: int | None = None,
        causal: bool = True,
        include_self: bool = True,
        positions: str | None = "relative",
        ramp: int = 32,
        span_init: float = 0.0,
        dropout: float = 0.0,
        bias: bool = False,
        implementation: str = "auto",
        refresh_every: int = 16,
    ):
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        least = {"hidden_size": hidden_size, "num_heads": num_heads, "num_kv_heads": num_kv_heads, "max_span": max_span}
        for name, number in (least | {"ramp": ramp, "refresh_every": refresh_every}).items():
            if number < 1:
                raise ValueError(f"{name}={number} must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be at least 0 and below 1")
        if hidden_size % num_heads or num_heads % num_kv_heads:
            raise ValueError(
                f"num_heads={num_heads} must divide hidden_size={hidden_size}, and num_kv_heads={num_kv_heads} must "
                f"divide num_heads"
            )
        if positions not in POSITIONS:
            raise ValueError(f"positions={positions!r} is none of {', '.join(map(repr, POSITIONS))}")
        size = hidden_size // num_heads
        if positions == "rotary" and size % 2:
            raise ValueError(f"rotary positions turn pairs of numbers, and a head of {size} has an odd one")
        self.hidden_size = hidden_size
        self.num_heads, self.num_kv_heads, self.max_span = num_heads, num_kv_heads, max_span
        self.causal, self.include_self, self.positions = causal, include_self, positions
        self.dropout, self.implementation = dropout, implementation
        self.query = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.key = nn.Linear(hidden_size, num_kv_heads * size, bias=bias)
        self.value = nn.Linear(hidden_size, num_kv_heads * size, bias=bias)
        self.output = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.span = AdaptiveSpan(num_heads, max_span, ramp, span_init)
        self.span_after = None if causal else AdaptiveSpan(num_heads, max_span, ramp, span_init)
        distances = max_span + int(include_self) if causal else 2 * max_span + 1
        self.position_embedding = nn.Parameter(torch.randn(size, distances)) if positions == "relative" else None
        self._bounds = [HostBounds(refresh_every) for _ in self._sides]
        self.register_load_state_dict_post_hook(_forget_bounds)  # type: ignore[no-untyped-call]

    @property
    def _sides(self) -> list[AdaptiveSpan]:
        return [self.span] if self.span_after is None else [self.span, self.span_after]

    def forward(
        self, hidden: Tensor, cache: AttentionCache | None = None, key_padding_mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, AttentionCache]:
        """Attend within a sequence, or within a stream that is read block by block.

        Args:
            hidden: (B, M, C).
            cache: what the last call returned, or `AttentionCache()` at the start of a stream. It carries no gradient.
                A span that has grown since sees no more of the past than was kept.
            key_padding_mask: true where a position of this block is padding, which no query sees, (B, M), bool.

        Returns:
            (B, M, C); with a cache, that and the cache for the next block.

        Raises:
            TypeError: `cache` is no `AttentionCache`.
            ValueError: A shape does not fit, or a cache is given though the layer looks ahead.
        """
        self._check_cache(cache, hidden)
        self._check(hidden, key_padding_mask)
        position = 0 if cache is None else cache.position
        query, key, value = (
            layer(hidden).unflatten(2, (heads, -1)).transpose(1, 2)
            for layer, heads in (
                (self.query, self.num_heads),
                (self.key, self.num_kv_heads),
                (self.value, self.num_kv_heads),
            )
        )
        if self.positions == "rotary":
            query, key = rotate(query, position), rotate(key, position)
        bounds, padding = self._span_bounds(), key_padding_mask
        if cache is not None:
            key, value, padding, cache = _joined(cache, key, value, padding, max(bounds[0]))
        attended = adaptive_attention(
            query,
            key,
            value,
            self.span,
            self.span_after,
            include_self=self.include_self,
            position_embedding=self.position_embedding,
            key_padding_mask=padding,
            dropout=self.dropout if self.training else 0.0,
            bounds=bounds[0],
            bounds_after=bounds[-1],
            implementation=self.implementation,
        )
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output if cache is None else (output, cache)

    @uncompiled
    def _span_bounds(self) -> list[Sequence[int]]:
        if not self.training:  # whatever has become of the spans; training's own bounds stay as they are
            return [bounds_of(span) for span in self._sides]
        return [bounds.of(span) for bounds, span in zip(self._bounds, self._sides, strict=True)]

    def _check(self, hidden: Tensor, key_padding_mask: Tensor | None) -> None:
        if hidden.dim() != 3 or hidden.size(2) != self.hidden_size:
            raise ValueError(f"hidden states are {tuple(hidden.shape)}, and must be (B, M, {self.hidden_size})")
        if key_padding_mask is not None and (
            key_padding_mask.shape != hidden.shape[:2] or key_padding_mask.dtype != torch.bool
        ):
            raise ValueError(
                f"key_padding_mask is {tuple(key_padding_mask.shape)} of {key_padding_mask.dtype}, and must be "
                f"{tuple(hidden.shape[:2])} of torch.bool: true where a position of these hidden states is padding"
            )

    def _check_cache(self, cache: AttentionCache | None, hidden: Tensor) -> None:
        if cache is None:
            return
        if not isinstance(cache, AttentionCache):
            raise TypeError(
                f"cache is a {type(cache).__name__}, and must be an AttentionCache; a layer takes one tensor of hidden "
                f"states, from which it makes queries, keys and values"
            )
        if self.span_after is not None:
            raise ValueError("a layer with causal=False needs the whole sequence at once, and takes no cache")
        if cache.key is not None and len(cache.key) != len(hidden):
            raise ValueError(f"the cache holds {len(cache.key)} rows, and the hidden states have {len(hidden)}")

    @torch.no_grad()
    def spans(self) -> Tensor:
        """Return the effective span of each head, in tokens: (H,), or before and after, (2, H), where not causal."""
        spans = [span.effective() for span in self._sides]
        return spans[0] if self.causal else torch.stack(spans)

    def span_penalty(self) -> Tensor:
        """Return the mean of z over the heads, in tokens, of both sides together where not causal (equation 5)."""
        return torch.stack([span.penalty() for span in self._sides]).sum()

    def clamp_spans_(self) -> None:
        """Bring every span back to at least 0 and at most its bound. Call it after each update.

        It waits for the device after `refresh_every` updates, or sooner while spans grow fast.
        """
        for bounds, span in zip(self._bounds, self._sides, strict=True):
            bounds.clamp_(span)

    def refresh_bounds(self) -> None:
        """Read the spans off the device, so that they may grow from where they are.

        Call it after you have set spans by hand. Training does it by itself now and then, and evaluation always.
        """
        for bounds, span in zip(self._bounds, self._sides, strict=True):
            bounds.refresh(span)


def _forget_bounds(layer: AdaptiveAttention, _: object) -> None:
    for bounds in layer._bounds:
        bounds.forget()


def _joined(
    cache: AttentionCache, key: Tensor, value: Tensor, padding: Tensor | None, reach: int
) -> tuple[Tensor, Tensor, Tensor | None, AttentionCache]:
    """Return keys, values and padding of the past and the present, and the cache that the next block sees."""
    position = cache.position + key.size(2)
    if cache.key is not None and cache.value is not None:
        if padding is not None or cache.padding is not None:
            padding = torch.cat([_mask(cache.padding, cache.key), _mask(padding, key)], dim=1)
        key = torch.cat([cache.key.to(key.dtype), key], dim=2)  # which autocast may have changed
        value = torch.cat([cache.value.to(value.dtype), value], dim=2)
    kept = slice(max(0, key.size(2) - reach), None)
    past = AttentionCache(  # copies: a view would keep the whole of what it is cut from
        key[:, :, kept].detach().clone(),
        value[:, :, kept].detach().clone(),
        None if padding is None else padding[:, kept].clone(),
        position,
    )
    return key, value, padding, past


def _mask(padding: Tensor | None, key: Tensor) -> Tensor:
    if padding is not None:
        return padding
    return torch.zeros(len(key), key.size(2), dtype=torch.bool, device=key.device)
