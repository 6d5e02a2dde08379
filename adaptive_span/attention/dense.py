"""Attention with a learned span, as its definition reads: every head of a layer looks as far as the longest one.

S is the span of the layer's longest head; the other letters are those of `adaptive_span.attention`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from adaptive_span.attention import Attended, Context, HeadGroup, MemoryKeysValues, SpanGeometry


def attend(
    context: Context,
    position_embedding: Tensor,
    geometry: SpanGeometry,
    dropout: float = 0.0,
    memory: MemoryKeysValues | None = None,
) -> Attended:
    """Compute attention by its definition (arXiv 1905.07799, section 2). See `adaptive_span.attention.Attend`."""
    span = geometry.longest
    [projected] = context.project([HeadGroup(range(len(geometry.bounds)), span)])
    query = projected.query.transpose(1, 2)  # (B, H, M, D)
    key, value = projected.keys_values.permute(3, 0, 2, 1, 4).unbind()  # (B, H, T, D) both

    products = query @ key.transpose(2, 3)  # (B, H, M, T)
    if projected.key_bias is not None:
        products = products + projected.key_bias[:, None, None]
    scores = unskew(products, span)  # (B, H, M, S)
    if position_embedding.size(1):
        scores = scores + query @ position_embedding[:, -span:]
    if (log_mask := geometry.log_mask()) is not None:
        scores = scores + log_mask[:, None]  # (H, 1, S)
    if memory is None:
        weights = F.dropout(scores.softmax(3), dropout, training=dropout > 0)  # (B, H, M, S)
        output = skew(weights) @ value[:, :, :-1]
    else:
        memory_key, memory_value = memory
        scores = torch.cat([scores, query @ memory_key], dim=3)  # (B, H, M, S + N)
        weights, memory_weights = F.dropout(scores.softmax(3), dropout, training=dropout > 0).split(
            [span, memory_key.size(2)], dim=3
        )
        output = skew(weights) @ value[:, :, :-1] + memory_weights @ memory_value
    return Attended(output.transpose(1, 2), [projected.keys_values])


def unskew(scores: Tensor, span: int) -> Tensor:
    """Return scores by distance, (…, M, S), of scores by absolute position, (…, M, T): a view.

    Its row m starts at column m. A query attends to the `span` positions before it and never to itself, so the last
    column is in no row.
    """
    *batch, block, length = scores.shape
    return scores.as_strided((*batch, block, span), (*scores.stride()[:-2], length + 1, 1), scores.storage_offset())


def skew(weights: Tensor) -> Tensor:
    """Return weights by absolute position, (…, M, T − 1), of weights by distance, (…, M, S), with zeros elsewhere.

    A row padded by M and read at a stride one shorter slides to the right by one column per row.
    """
    *batch, block, span = weights.shape
    padded = F.pad(weights, (0, block)).flatten(-2)[..., :-block]
    return padded.view(*batch, block, span + block - 1)
