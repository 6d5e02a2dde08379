"""Spans beside attention sinks: the same as every score computed and masked, in float64, with its gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adaptive_span.attention import sinks as module
from adaptive_span.attention.sinks import attend_with_sinks

RAMP = 4


def log_mask(spans: Tensor, distances: Tensor) -> Tensor:
    height = ((RAMP + 1 + spans[:, None] - distances) / RAMP).clamp(max=1)
    return torch.where(height > 0, torch.where(height > 0, height, 1.0).log(), float("-inf"))


def by_definition(query: Tensor, key: Tensor, value: Tensor, spans: Tensor, sinks: int) -> Tensor:
    share, length = query.size(1) // key.size(1), query.size(2)
    scores = query @ key.repeat_interleave(share, 1).transpose(2, 3) / 3  # (B, H, M, M)
    places = torch.arange(length)
    distances = places[:, None] - places
    mask = log_mask(spans, distances.flatten().double()).view(-1, length, length)
    mask = mask.masked_fill((distances == 0) | (places < sinks), 0.0).masked_fill(distances < 0, float("-inf"))
    return (scores + mask).softmax(3) @ value.repeat_interleave(share, 1)


@given(
    st.lists(st.floats(0, 60), min_size=4, max_size=4), st.integers(1, 50), st.integers(0, 6), st.sampled_from([7, 256])
)
def test_spans_and_sinks_are_those_of_the_definition(spans: list[float], length: int, sinks: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, heads, length, 5) for heads in (4, 2, 2)]
    query, key, value = (torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes)
    tokens = torch.tensor(spans, dtype=torch.float64, requires_grad=True)
    longest = 64
    distances = torch.arange(longest, 0, -1, dtype=torch.float64)
    bounds = [min(longest, int(span) + RAMP + 1) for span in spans]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        found = attend_with_sinks(query, key, value, log_mask(tokens, distances), bounds, sinks, 1 / 3)
    expected = by_definition(query, key, value, tokens, sinks)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(found.shape, dtype=torch.float64, generator=generator)
    inputs = (query, key, value, tokens)
    grads = [torch.autograd.grad((output * weight).sum(), inputs, allow_unused=True) for output in (found, expected)]
    for tensor, one, other in zip(inputs, *grads, strict=True):  # None where only sinks are seen
        one, other = (torch.zeros_like(tensor) if grad is None else grad for grad in (one, other))
        torch.testing.assert_close(one, other)
