"""The attention that transformers calls by the name `adaptive_span`: every head as far as its `HeadSpans` say."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from adaptive_span.attention.sinks import attend_with_sinks
from adaptive_span.hf.learned import HeadSpans

NAME = "adaptive_span"
SPANS = "head_spans"  # the attribute by which a module of attention holds its spans; a layer without sees all
HELD = "held_before"  # the attribute of keys by which a layer of a SpanCache hands itself over


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers' `AttentionInterface` asks for it.

    Args:
        module: the layer's module of attention.
        query: (B, H, M, D), at the last M of K positions.
        key: (B, G, K, D).
        value: (B, G, K, D).
        attention_mask: true, or 0, where a query may see a key, (B, 1, M, K); None for causal attention.
        dropout: the probability with which a weight is dropped.
        scaling: what queries are multiplied by; 1 / √D where not given.
        softcap: c of the scores c · tanh(s / c), for models that have one.

        **others: what only some models give; a sliding layer's own attention gets it.

    Returns:
        (B, M, H, D), and None for the weights, which are not kept.
    """
    spans: HeadSpans | None = getattr(module, SPANS, None)
    if spans is None and softcap is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    scale = query.size(3) ** -0.5 if scaling is None else scaling
    if (held := getattr(key, HELD, None)) is not None:
        seen: Tensor | None = held.attend(query, key, value, attention_mask, scale, softcap)
        if seen is not None:
            return seen.transpose(1, 2), None
    whole = attention_mask is None and query.size(2) == key.size(2) > 1
    if spans is not None and whole and softcap is None and not dropout:
        length, dtype = key.size(2), torch.float32 if query.device.type == "cpu" else query.dtype
        distances = torch.arange(length - 1, 0, -1, device=query.device)
        output = attend_with_sinks(
            query, key, value, spans.log_mask(distances), spans.bounds(length - 1), spans.sinks, scale,
            computed_in=dtype,
        )  # fmt: skip
        return output.transpose(1, 2), None
    return _with_all_scores(spans, query, key, value, attention_mask, dropout, scale, softcap).transpose(1, 2), None


def _with_all_scores(
    spans: HeadSpans | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Compute the score of every key that is given: of few queries, or where scores are capped."""
    share, (block, known) = query.size(1) // key.size(1), (query.size(2), key.size(2))
    keys, values = (x.repeat_interleave(share, 1) for x in (key, value))
    scores = (query @ keys.transpose(2, 3)).float() * scale  # (B, H, M, K)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    places = torch.arange(known, device=query.device)
    distances = places[-block:, None] - places  # (M, K)
    if attention_mask is None:
        seen = (distances >= 0)[None, None]
    else:
        seen = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    if spans is not None:
        masks = spans.log_mask(distances.clamp(min=1)).masked_fill(distances <= 0, 0.0)  # (H, M, K)
        text = seen[:, :, -1:]  # the last query sees all that is no padding
        first = text & (text.cumsum(3) <= spans.sinks)  # (B, 1, 1, K)
        scores = scores + masks[None].masked_fill(first, 0.0)
    scores = scores.masked_fill(~seen, float("-inf")).masked_fill(~seen.any(3, keepdim=True), 0.0)
    weights = nn.functional.dropout(scores.softmax(3), dropout).to(query.dtype)
    output: Tensor = weights @ values
    return output


def register() -> None:
    """Let transformers know this attention by its name."""
    AttentionInterface.register(NAME, attend)
    register_mask(NAME)


def register_mask(name: str) -> None:
    """Have transformers make boolean masks, and none where attention is causal, for the attention of a name."""
    AttentionMaskInterface.register(name, sdpa_mask)
