"""Attention in one's own model, against its definition in double precision and against torch's own layer."""

import re
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adaptive_span import AdaptiveAttention, AdaptiveSpan, AttentionCache, adaptive_attention
from adaptive_span.attention import tiles
from adaptive_span.attention.rotary import rotate

HEADS = torch.ones(1, 2, 4, 5)

cases = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "kv_heads": st.integers(1, 2),
        "share": st.integers(1, 2),  # query heads of a key/value head
        "size": st.integers(1, 4),
        "block": st.integers(1, 9),
        "past": st.integers(0, 12),
        "max_span": st.integers(1, 14),
        "max_after": st.none() | st.integers(1, 9),
        "ramp": st.integers(1, 5),
        "include_self": st.booleans(),
        "relative": st.booleans(),
        "padded": st.booleans(),
        "seed": st.integers(0, 2**16),
    }
)


def inputs(case, dtype=torch.float64):
    """Return what `adaptive_attention` takes, and what it is differentiable in."""
    draw = torch.Generator().manual_seed(case["seed"])
    batch, heads, size = case["batch"], case["kv_heads"] * case["share"], case["size"]
    length, both = case["past"] + case["block"], case["max_after"] is not None

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    def span(longest):
        made = AdaptiveSpan(heads, longest, case["ramp"])
        choices = torch.tensor([0.0, 1.0, *torch.rand(3, generator=draw)])
        made.fraction.data = choices[torch.randint(5, (heads,), generator=draw)].to(dtype)
        return made

    given = {
        "query": normal(batch, heads, case["block"], size),
        "key": normal(batch, case["kv_heads"], length, size),
        "value": normal(batch, case["kv_heads"], length, size),
        "span": span(case["max_span"]),
        "span_after": span(case["max_after"]) if both else None,
        "include_self": case["include_self"],
        "key_padding_mask": torch.rand(batch, length, generator=draw) < 0.4 if case["padded"] else None,
    }
    distances = case["max_span"] + (1 + case["max_after"] if both else int(case["include_self"]))
    given["position_embedding"] = normal(size, distances) if case["relative"] else None
    leaves = [given[name] for name in ("query", "key", "value")] + [given["span"].fraction]
    leaves += [given["span_after"].fraction] if both else []
    return given, leaves + ([given["position_embedding"]] if case["relative"] else [])


def soft_mask(span, distances, include_self):
    """With the weight below any rounding that the foot of the ramp has: it shows where all other keys are padding."""
    at_foot = distances == span.tokens()[:, None, None] + span.ramp + 1
    return span.mask(distances, include_self) + 1e-20 * (at_foot & (distances <= span.max_span))


def by_the_definition(
    query, key, value, span, span_after, include_self, key_padding_mask, position_embedding=None, scale=None
):
    share, block, length = query.size(1) // key.size(1), query.size(2), key.size(2)
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    distances = torch.arange(length - block, length)[:, None] - torch.arange(length)  # (M, K)
    scores = query @ key.mT
    if position_embedding is not None:
        column = (span.max_span - distances).clamp(0, position_embedding.size(1) - 1)
        scores = scores + torch.einsum("bhmd,dmk->bhmk", query, position_embedding[:, column])
    mask = soft_mask(span, distances, include_self)
    if span_after is not None:
        mask = mask + soft_mask(span_after, -distances, include_self=False)
    if key_padding_mask is not None:
        mask = mask * ~key_padding_mask[:, None, None]
    weights = (scores * query.size(3) ** -0.5).exp() * mask
    total = weights.sum(3, keepdim=True)
    return weights / torch.where(total > 0, total, 1) @ value


def with_gradients(output, leaves):
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [output, *torch.autograd.grad((output * direction.to(output.dtype)).sum(), leaves)]


@pytest.mark.parametrize("implementation", ["dense", "banded", "banded in torch"])
@given(cases)
def test_it_is_its_definition_with_all_gradients(implementation, case):
    given, leaves = inputs(case)
    expected = with_gradients(by_the_definition(**given), leaves)
    in_torch = mock.patch.object(tiles, "run_on", return_value=False)
    with in_torch if implementation == "banded in torch" else nullcontext():
        got = with_gradients(adaptive_attention(**given, implementation=implementation.split()[0]), leaves)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


@settings(max_examples=5)
@given(cases)
def test_the_fused_kernels_compute_it_too(case):
    pytest.importorskip("triton", reason="there is no triton for this system")
    expected = with_gradients(by_the_definition(**(pair := inputs(case))[0]), pair[1])
    given, leaves = inputs(case, torch.float32)
    got = with_gradients(adaptive_attention(**given, implementation="fused"), leaves)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).norm() < 3e-5 * (1 + b.norm())


layers = st.fixed_dictionaries(
    {
        "num_kv_heads": st.sampled_from([1, 2, 4]),
        "include_self": st.booleans(),
        "positions": st.sampled_from(["relative", "rotary", None]),
        "span_init": st.floats(0, 1),
        "ramp": st.integers(1, 5),
    }
)


@settings(max_examples=25)
@given(layers, st.lists(st.integers(1, 9), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_a_stream_in_blocks_is_the_sequence_at_once(options, blocks, training, padded):
    torch.manual_seed(0)
    layer = AdaptiveAttention(16, 4, max_span=12, **options).double().train(training)
    hidden = torch.randn(2, sum(blocks), 16, dtype=torch.float64)
    padding = torch.rand(2, sum(blocks)) < 0.3 if padded else None
    parts, cache = [], AttentionCache()
    for start, block in zip(torch.tensor([0, *blocks]).cumsum(0).tolist(), blocks, strict=False):
        here = slice(start, start + block)
        part, cache = layer(hidden[:, here], cache, None if padding is None else padding[:, here])
        parts.append(part)
        assert not cache.key.requires_grad
        assert cache.key.size(2) <= 12
    torch.testing.assert_close(torch.cat(parts, 1), layer(hidden, key_padding_mask=padding), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_at_full_span_it_is_multihead_attention(causal):
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).double()
    ours = AdaptiveAttention(16, 4, 20, causal=causal, positions=None, span_init=1.0, bias=True).double()
    projections = zip((ours.query, ours.key, ours.value), theirs.in_proj_weight.split(16), strict=True)
    for linear, weight in projections:
        linear.weight.data, linear.bias.data = weight.data, torch.randn(16, dtype=torch.float64)
    theirs.in_proj_bias.data = torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]).data
    ours.output.load_state_dict(theirs.out_proj.state_dict())
    hidden = torch.randn(3, 20, 16, dtype=torch.float64)
    padding = torch.zeros(3, 20, dtype=torch.bool)
    padding[1, 15:] = padding[2, 3:7] = True
    hidden_from = torch.ones(20, 20, dtype=torch.bool).triu(1) if causal else None
    expected, _ = theirs(hidden, hidden, hidden, key_padding_mask=padding, attn_mask=hidden_from, need_weights=False)
    torch.testing.assert_close(ours(hidden, key_padding_mask=padding), expected, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 10**6), st.integers(-500, 500))
def test_rotary_products_depend_on_the_distance_alone(first, distance):
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    there = rotate(query, 1000) @ rotate(key, 1000 - distance).mT
    here = rotate(query, 1000 + first) @ rotate(key, 1000 + first - distance).mT
    torch.testing.assert_close(there, here, rtol=1e-7, atol=1e-7)


@settings(max_examples=20)
@given(st.booleans(), st.lists(st.floats(-0.3, 0.3), min_size=1, max_size=40), st.integers(1, 20))
def test_bounds_never_change_what_is_computed(causal, changes, every):
    """Spans walk as an optimizer moves them, by up to 60 tokens at once; the host reads them now and then."""
    torch.manual_seed(0)
    layer = AdaptiveAttention(8, 2, 200, causal=causal, refresh_every=every, ramp=8, positions=None).double()
    hidden = torch.randn(1, 230, 8, dtype=torch.float64)
    for change in changes:
        layer.span.fraction.data.add_(change * torch.rand(2))  # unlike an optimizer's, a change that nobody counts
        with torch.no_grad():
            layer.span.fraction.add_(0)
        layer.clamp_spans_()
    assert all(span <= bound for span, bound in zip(layer.spans().flatten(), layer._bounds[0].bounds, strict=False))
    with mock.patch.object(layer, "_bounds", [mock.Mock(current=lambda _: [200, 200])] * 2):
        expected = layer(hidden)
    torch.testing.assert_close(layer(hidden), expected, rtol=1e-9, atol=1e-12)


def test_training_reads_the_spans_seldom_and_evaluation_after_each_change():
    torch.manual_seed(0)
    layer = AdaptiveAttention(8, 2, 400, refresh_every=10, positions=None)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    hidden, read = torch.randn(1, 50, 8), mock.Mock(side_effect=layer.span.effective)
    with mock.patch.object(layer.span, "effective", read):
        for _ in range(40):
            optimizer.zero_grad()
            (layer(hidden).mean() - 0.001 * layer.span_penalty()).backward()  # so that spans grow
            optimizer.step()
            layer.clamp_spans_()
        assert 4 <= read.call_count <= 6
        read.reset_mock()
        layer.eval()
        layer(hidden), layer(hidden)
        assert read.call_count == 1
    assert layer.spans().min() > 60  # they grew past the bounds that they began with


def test_loaded_spans_count_at_once():
    torch.manual_seed(0)
    short, long = (AdaptiveAttention(8, 2, 200, span_init=init) for init in (0.0, 1.0))
    hidden = torch.randn(1, 230, 8)
    short(hidden)
    short.load_state_dict(long.state_dict())
    torch.testing.assert_close(short(hidden), long(hidden))


def test_it_runs_under_autocast():
    torch.manual_seed(0)
    layer = AdaptiveAttention(32, 4, 40, causal=False, num_kv_heads=2)
    hidden = torch.randn(2, 50, 32)
    expected = layer(hidden)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(hidden)
    assert output.dtype == torch.bfloat16
    output.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert (output - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: AdaptiveAttention(10, 4, 8), "num_heads=4 must divide hidden_size=10"),
        (lambda: AdaptiveAttention(8, 4, 8, num_kv_heads=3), "num_kv_heads=3 must divide num_heads"),
        (lambda: AdaptiveAttention(8, 4, 8, positions="alibi"), "positions='alibi' is none of"),
        (lambda: AdaptiveAttention(8, 4, 8, implementation="flash")(torch.ones(1, 2, 8)), "is none of auto, dense"),
        (lambda: AdaptiveAttention(6, 2, 8, positions="rotary")(torch.ones(1, 2, 6)), "head of 3 has an odd one"),
        (lambda: AdaptiveAttention(8, 2, 8, causal=False)(torch.ones(1, 2, 8), AttentionCache()), "takes no cache"),
        (lambda: AdaptiveAttention(8, 2, 8)(torch.ones(1, 2, 8), None, torch.ones(1, 2)), "must be (1, 2) of"),
        (lambda: adaptive_attention(HEADS, HEADS, HEADS, AdaptiveSpan(3, 8)), "the span has 3 heads"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(call, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        call()
