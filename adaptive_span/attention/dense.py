"""Attention with a learned span, as its definition reads: every head of a layer looks as far as the longest one.

B batch, H heads, M block, D head size, S span of the layer's longest head, L maximum span, N persistent vectors.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptive_span.attention.context import Context
from adaptive_span.attention.span import log_soft_mask


def attend(
    context: Context,
    positions: Tensor,
    spans: Tensor | None,
    ramp: int,
    limits: Sequence[int],
    dropout: float = 0.0,
    memory: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """See `adaptive_span.attention`."""
    span = max(limits)
    [(query, both)] = context.project([(range(len(limits)), span)])
    query, key_value = query.transpose(1, 2), both.permute(3, 0, 2, 1, 4)  # (B, H, M, D), (2, B, H, S + M, D)
    key, value = key_value.unbind()

    scores = unskew(query @ key.transpose(2, 3), span) + query @ positions[:, -span:]  # (B, H, M, S)
    if spans is not None:
        scores = scores + log_soft_mask(spans, ramp, span)[:, None]  # (H, 1, S)
    if memory is None:
        weights = F.dropout(scores.softmax(3), dropout, training=dropout > 0)
        return (skew(weights) @ value[:, :, :-1]).transpose(1, 2)
    memory_key, memory_value = memory
    scores = torch.cat([scores, query @ memory_key], dim=3)  # (B, H, M, S + N)
    weights, memory_weights = F.dropout(scores.softmax(3), dropout, training=dropout > 0).split(
        [span, memory_key.size(2)], dim=3
    )
    return (skew(weights) @ value[:, :, :-1] + memory_weights @ memory_value).transpose(1, 2)


def unskew(scores: Tensor, span: int) -> Tensor:
    """(…, M, S + M) by absolute position → (…, M, S) by distance: a view whose row m starts at column m.

    A query attends to the `span` positions before it and never to itself, so the last column is in no row.
    """
    *batch, block, length = scores.shape
    return scores.as_strided((*batch, block, span), (*scores.stride()[:-2], length + 1, 1), scores.storage_offset())


def skew(weights: Tensor) -> Tensor:
    """(…, M, S) by distance → (…, M, S + M − 1) by absolute position, with zeros outside each query's span.

    A row padded by M and read at a stride one shorter slides to the right by one column a row.
    """
    *batch, block, span = weights.shape
    padded = F.pad(weights, (0, block)).flatten(-2)[..., :-block]
    return padded.view(*batch, block, span + block - 1)
