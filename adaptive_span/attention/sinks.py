"""Causal attention where each head sees the tokens within its span, and the first tokens of the text from anywhere.

A softmax cannot attend to nothing. Trained models put the weight that they do not need on the first tokens, their
attention sinks (arXiv 2309.17453), which a span must therefore never hide.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adaptive_span.attention import MemoryKeysValues, SpanGeometry
from adaptive_span.attention.dispatch import choose
from adaptive_span.attention.given_keys import GivenKeys

CHUNK = 2048  # queries that are taken together: what is gathered for them is then bounded, and launches are few


def attend_with_sinks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_mask: Tensor,
    bounds: Sequence[int],
    sinks: int,
    scale: float,
    implementation: str = "auto",
    computed_in: torch.dtype | None = None,
) -> Tensor:
    """Attend from every position of whole texts to itself, to those before it within its head's span, and to the sinks.

    Args:
        query: (B, H, M, D).
        key: (B, G, M, D), where each of the G key/value heads serves H / G query heads, one behind another.
        value: (B, G, M, D).
        log_mask: log m(x) at the distances x = S … 1, (H, S).
        bounds: for each head a whole number of tokens, from 1 to S, beyond which its mask is 0.
        sinks: how many of the first tokens every later one sees, whatever its span.
        scale: what queries are multiplied by.
        implementation: auto, banded or fused.
        computed_in: the type to attend in; that of the queries where not given.

    Returns:
        (B, H, M, D), differentiable in all tensors, of the queries' type. What the backward pass needs is kept as it is
        given, and not for every query head.
    """
    length, share = query.size(2), query.size(1) // key.size(1)
    sinks = min(sinks, length)
    first_keys, first_values = (x[:, :, :sinks].to(computed_in or query.dtype) for x in (key, value))
    rows = []
    if sinks:
        rows = [_among_sinks(query[:, :, :sinks].to(first_keys.dtype), first_keys, first_values, scale)]
    attend = choose(implementation)
    no_positions = first_keys.new_zeros(query.size(3), 0)
    for first in range(sinks, length, CHUNK):
        last = min(first + CHUNK, length)
        reach = max(1, min(max(bounds), last - 1 - sinks))  # tokens that there are before the last query
        itself = log_mask.new_zeros(len(log_mask), 1)
        mask = torch.cat([log_mask[:, log_mask.size(1) - reach :], itself], dim=1)
        geometry = SpanGeometry(None, 1, [min(bound, reach) + 1 for bound in bounds], mask)
        outputs = []
        for row in range(len(query)):  # the sinks of a row are keys of that row alone
            one = slice(row, row + 1)
            queries, keys, values = query[one, :, first:last], key[one, :, sinks:last], value[one, :, sinks:last]
            context = GivenKeys(queries, keys, values, range(query.size(1)), 1, scale, None, computed_in)
            memory = _memory(first_keys[row], first_values[row], share) if sinks else None
            with context.gathered_again():
                outputs.append(attend(context, no_positions, geometry, 0.0, memory).output)  # (1, m, H, D)
        rows.append(torch.cat(outputs).transpose(1, 2))
    return torch.cat(rows, dim=2).to(query.dtype)


def _memory(key: Tensor, value: Tensor, share: int) -> MemoryKeysValues:
    """Return sinks (G, N, D) as what attention knows as persistent memory: (H, D, N) and (H, N, D)."""
    return key.repeat_interleave(share, 0).transpose(1, 2), value.repeat_interleave(share, 0)


def _among_sinks(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend from the sinks to those before them and to themselves."""
    share = query.size(1) // key.size(1)
    keys, values = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    scores = (query * scale) @ keys.transpose(2, 3)  # (B, H, N, N)
    later = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(1)
    output: Tensor = scores.masked_fill(later, float("-inf")).softmax(3) @ values
    return output
