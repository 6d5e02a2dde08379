"""Attention over your own queries, keys and values, each head as far as its learned span, at the cost of that span."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adaptive_span.attention import SpanGeometry
from adaptive_span.attention.dispatch import choose
from adaptive_span.attention.given_keys import GivenKeys
from adaptive_span.attention.head_groups import HeadGroup, group_heads, order_on, out_of_groups
from adaptive_span.attention.span import AdaptiveSpan, ramp_height, upper_bound

IMPLEMENTATIONS = ("auto", "dense", "banded", "fused")


def adaptive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span: AdaptiveSpan,
    span_after: AdaptiveSpan | None = None,
    *,
    include_self: bool = True,
    position_embedding: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    bounds: Sequence[int] | None = None,
    bounds_after: Sequence[int] | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Attend from each query to the keys within the learned span of its head (arXiv 1905.07799, section 2).

    With x the query's position minus the key's, and m(x) the soft mask `span.mask`:

        s(x) = scale · q · (k + p_x)        weight(x) = m(x) exp s(x) / Σ m(x′) exp s(x′)

    A query that may see no key gives zeros. The letters: B rows, H heads, G key/value heads, M queries, K ≥ M keys, D
    head size, L the maximum span, all in the order of positions. The last M keys lie where the queries do.

    Args:
        query: (B, H, M, D).
        key: (B, G, K, D). With G < H, each key/value head serves H / G query heads (grouped-query attention).
        value: (B, G, K, D).
        span: how far each head looks back.
        span_after: how far each head looks ahead; None where it does not (causal attention).
        include_self: whether a query sees its own position.
        position_embedding: p, one learned vector per distance, from the farthest before a query to the farthest after,
            (D, P): P is L, one more with `include_self`, and L + 1 + L of `span_after` in both directions. None for
            no embedding, which rotary positions make needless.
        key_padding_mask: true where a key is padding and not seen, (B, K).
        dropout: the probability with which a weight is dropped.
        scale: 1 / √D where not given.
        bounds: for each head a whole number of tokens, at least 1, that its effective span does not exceed. Where not
            given they are read off the spans, which waits for the device. A head sees nothing beyond its bound.
        bounds_after: likewise for `span_after`, without which it has no meaning.
        implementation: auto, dense, banded or fused, as `model.attention`.

    Returns:
        (B, H, M, D), differentiable in query, key, value, spans and position embedding.

    Raises:
        TypeError: A span is no `AdaptiveSpan`.
        ValueError: A shape or a number does not fit the others, or there is no such implementation.
        UserError: `implementation` is fused where that cannot run.
    """
    _check(query, key, value, span, span_after, include_self, position_embedding, key_padding_mask, implementation)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} must be at least 0 and below 1")
    size = query.size(3)
    scale = size**-0.5 if scale is None else scale
    bounds = _checked(bounds, span, "bounds")
    if span_after is None:
        classes = [HeadGroup(range(query.size(1)), 0)]
    else:  # each class of heads looks ahead alike, so that its positions are moved on alike
        classes = group_heads(_checked(bounds_after, span_after, "bounds_after"))
    if not query.numel():
        return query.clone()
    most_ahead = (1 if include_self else 0) if span_after is None else span_after.max_span + 1
    if position_embedding is None:
        position_embedding = query.new_zeros(size, 0)
    attend = choose(implementation)
    outputs = []
    for heads, after in classes:
        ahead = most_ahead if span_after is None else after + 1
        context = GivenKeys(query, key, value, heads, ahead, scale, key_padding_mask)
        positions = position_embedding[:, : span.max_span + ahead]
        geometry = _geometry(span, span_after, include_self, heads, [bounds[head] for head in heads], ahead)
        outputs.append(attend(context, positions, geometry, dropout).output)  # (B, M, h, D)
    return out_of_groups(torch.cat(outputs, dim=2), 2, classes).transpose(1, 2)


def bounds_of(span: AdaptiveSpan) -> list[int]:
    """Return bounds on the effective spans, in tokens, (H,). It waits for the device."""
    return [upper_bound(effective, span.max_span) for effective in span.on_host()]


def _checked(bounds: Sequence[int] | None, span: AdaptiveSpan, name: str) -> Sequence[int]:
    if bounds is None:
        return bounds_of(span)
    heads, longest = len(span.fraction), span.max_span
    if len(bounds) != heads or not all(isinstance(bound, int) and 1 <= bound <= longest for bound in bounds):
        raise ValueError(f"{name}={list(bounds)} must be {heads} whole numbers from 1 to {longest}, one for each head")
    return bounds


def _geometry(
    span: AdaptiveSpan,
    span_after: AdaptiveSpan | None,
    include_self: bool,
    heads: Sequence[int],
    bounds: Sequence[int],
    ahead: int,
) -> SpanGeometry:
    """Return how far these heads look in the implementation's distances, which are `ahead` larger than ours."""
    whole = len(heads) == len(span.fraction)
    own = slice(None) if whole else order_on(span.fraction.device, tuple(heads))
    masks = [_log_mask(span, own, max(bounds))]
    if ahead:
        masks.append(masks[0].new_full((len(heads), 1), 0.0 if include_self else float("-inf")))  # the query itself
    if span_after is not None:
        masks.append(_log_mask(span_after, own, ahead - 1).flip(1))
    return SpanGeometry(None, span.ramp, [bound + ahead for bound in bounds], torch.cat(masks, dim=1))


def _log_mask(span: AdaptiveSpan, heads: Tensor | slice, length: int) -> Tensor:
    """Return log m(x) of some heads at x = `length` … 1, (h, length), −inf where m is 0.

    Unlike that of the models here, it gives the foot of the ramp, where m has just become 0, no weight below all
    rounding: where all else is padding, such a key would be all that is seen.
    """
    spans = span.tokens()[heads].clamp(min=0)
    distances = torch.arange(length, 0, -1, device=spans.device, dtype=spans.dtype)
    height = ramp_height(spans[:, None], span.ramp, distances).clamp(max=1)
    seen = height > 0
    return torch.where(seen, torch.where(seen, height, 1.0).log(), float("-inf"))


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    span: AdaptiveSpan,
    span_after: AdaptiveSpan | None,
    include_self: bool,
    position_embedding: Tensor | None,
    key_padding_mask: Tensor | None,
    implementation: str,
) -> None:
    sides = [span] if span_after is None else [span, span_after]
    for each in sides:
        if not isinstance(each, AdaptiveSpan):
            raise TypeError(f"a span must be an AdaptiveSpan, not a {type(each).__name__}")
    if query.dim() != 4 or not query.is_floating_point() or 0 in (query.size(1), query.size(3)):
        raise ValueError(f"queries are {tuple(query.shape)} of {query.dtype}, and must be (B, H, M, D) of real numbers")
    batch, heads, block, size = query.shape
    if key.shape != value.shape or key.dim() != 4 or len(key) != batch or key.size(3) != size:
        raise ValueError(
            f"keys {tuple(key.shape)} and values {tuple(value.shape)} must both be ({batch}, G, K, {size}), as the "
            f"queries are {tuple(query.shape)}"
        )
    if not key.size(1) or heads % key.size(1) or key.size(2) < block:
        raise ValueError(
            f"{heads} query heads at {block} positions need key/value heads that divide them and at least as many "
            f"positions, not {key.size(1)} and {key.size(2)}"
        )
    for each in sides:
        if len(each.fraction) != heads:
            raise ValueError(f"the span has {len(each.fraction)} heads and the queries have {heads}")
    expected = span.max_span + int(include_self) if span_after is None else span.max_span + 1 + span_after.max_span
    if position_embedding is not None and position_embedding.shape != (size, expected):
        raise ValueError(
            f"position_embedding is {tuple(position_embedding.shape)}, and these spans need {(size, expected)}"
        )
    if key_padding_mask is not None and (
        key_padding_mask.shape != (batch, key.size(2)) or key_padding_mask.dtype != torch.bool
    ):
        raise ValueError(
            f"key_padding_mask is {tuple(key_padding_mask.shape)} of {key_padding_mask.dtype}, and must be "
            f"{(batch, key.size(2))} of torch.bool, true where a key is padding"
        )
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")
