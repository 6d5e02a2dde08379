"""Attention in one's own model, against its definition in double precision and against torch's own layer."""

import re
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import vector_to_parameters
from torch.optim.swa_utils import AveragedModel

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
    """Without the slope that the mask has at its foot, where nothing is seen yet."""
    mask = span.mask(distances, include_self)
    return mask * (mask > 0)


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
        layer(hidden[:, :1])
        with torch.no_grad():
            layer.span.fraction.add_(change * torch.rand(2))
        layer.clamp_spans_()
    output = layer(hidden)
    assert (layer.span.fraction >= 0).all()
    torch.testing.assert_close(output, layer.eval()(hidden), rtol=1e-9, atol=1e-12)


def grown(rate, updates=40, evaluate=False):
    """Let spans grow by so many tokens in each update; return the layer, and how often the host read them."""
    torch.manual_seed(0)
    layer = AdaptiveAttention(8, 2, 2000, ramp=8, refresh_every=10, positions=None)
    optimizer = torch.optim.SGD(layer.span.parameters(), lr=1.0)
    hidden, read = torch.randn(1, 50, 8), mock.Mock(side_effect=layer.span.on_host)
    with mock.patch.object(layer.span, "on_host", read):
        for _ in range(updates):
            optimizer.zero_grad()
            layer(hidden)
            (-layer.span_penalty() * 2 * rate / 2000**2).backward()
            optimizer.step()
            layer.clamp_spans_()
            if evaluate:
                layer.eval()(hidden)
                layer.train()
    return layer, read.call_count


def test_training_reads_the_spans_seldom():
    layer, readings = grown(rate=0.5)
    assert layer.spans().tolist() == pytest.approx([28, 28])  # a ramp of 8, and 40 times 0.5
    assert readings <= 9


def test_spans_that_grow_fast_are_read_more_often_and_hardly_held():
    layer, _ = grown(rate=6)
    assert layer.spans().min() > 0.9 * (8 + 40 * 6)


def test_evaluation_leaves_training_as_it_is():
    assert torch.equal(grown(rate=3)[0].span.fraction, grown(rate=3, evaluate=True)[0].span.fraction)


CHANGES = {
    "in place": lambda layer, spans: layer.span.fraction.data.copy_(spans),
    "counted": lambda layer, spans: vector_to_parameters(spans, [layer.span.fraction]),
    "replaced": lambda layer, spans: setattr(layer.span, "fraction", nn.Parameter(spans)),
    "span replaced": lambda layer, spans: setattr(layer, "span", AdaptiveSpan(2, 200, 8, spans[0].item())),
    "loaded": lambda layer, spans: layer.load_state_dict(layer.state_dict() | {"span.fraction": spans}),
    "span loaded": lambda layer, spans: layer.span.load_state_dict({"fraction": spans}),
}


SEEN = [(how, False) for how in CHANGES] + [(how, True) for how in CHANGES if how != "in place"]  # .data tells nobody


@pytest.mark.parametrize(("how", "training"), SEEN)
def test_changed_spans_count_at_once(how, training):
    torch.manual_seed(0)
    layer = AdaptiveAttention(8, 2, 200, ramp=8).train(training)
    hidden = torch.randn(1, 230, 8)
    layer(hidden)
    CHANGES[how](layer, torch.tensor([0.7, 0.7]))
    fresh = AdaptiveAttention(8, 2, 200, ramp=8)
    fresh.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(hidden), fresh(hidden))


def test_copies_have_bounds_of_their_own():
    torch.manual_seed(0)
    layer, hidden = AdaptiveAttention(8, 2, 200, ramp=8), torch.randn(1, 230, 8)
    layer(hidden)
    average = AveragedModel(layer)
    with torch.no_grad():
        layer.span.fraction.fill_(0.5)
    average.update_parameters(layer)
    torch.testing.assert_close(average.module(hidden), layer(hidden))


def test_where_nothing_is_seen_there_are_zeros_without_a_gradient():
    """Between two gaps of padding lies a key at the foot of each side's ramp."""
    layer = AdaptiveAttention(8, 2, 64, causal=False, ramp=4, include_self=False).double()
    padding = torch.zeros(1, 100, dtype=torch.bool)
    padding[:, 41:45] = padding[:, 46:50] = True
    hidden = torch.randn(1, 100, 8, dtype=torch.float64, requires_grad=True)
    output = layer(hidden, key_padding_mask=padding)
    assert output[0, 45].tolist() == [0] * 8
    output.square().sum().backward()
    assert layer.span.fraction.grad.abs().max() < 1e6


@pytest.mark.parametrize("include_self", [True, False])
def test_a_query_among_padding_before_its_text_gets_zeros(include_self):
    """One head sees a single later token, and the other one all, so that what both could see begins in the text."""
    draw = torch.Generator().manual_seed(0)
    leaves = [torch.randn(1, 2, 8, 4, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(3)]
    span, after = AdaptiveSpan(2, 8, 1, init=1.0).double(), AdaptiveSpan(2, 6, 1).double()
    after.fraction.data = torch.tensor([0.0, 1.0], dtype=torch.float64)
    padding = torch.arange(8)[None] < 4
    expected = with_gradients(by_the_definition(*leaves, span, after, include_self, padding), leaves)
    output = adaptive_attention(*leaves, span, after, include_self=include_self, key_padding_mask=padding)
    torch.testing.assert_close(with_gradients(output, leaves), expected)


def test_a_mask_that_changes_before_the_backward_pass_is_an_error():
    layer, padding = AdaptiveAttention(8, 2, 64), torch.zeros(1, 30, dtype=torch.bool)
    output = layer(torch.randn(1, 30, 8), key_padding_mask=padding)
    padding[:, 5] = True
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_runs_under_autocast(dtype):
    torch.manual_seed(0)
    layer = AdaptiveAttention(32, 4, 40, causal=False, num_kv_heads=2)
    hidden = torch.randn(2, 50, 32)
    expected = layer(hidden)
    with torch.autocast("cpu", dtype):
        output = layer(hidden)
    assert output.dtype == dtype
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
        (lambda: AdaptiveAttention(6, 2, 8, positions="rotary"), "head of 3 has an odd one"),
        (lambda: AdaptiveAttention(8, 2, 8, ramp=0), "ramp=0 must be at least 1"),
        (lambda: AdaptiveAttention(8, 2, 8, dropout=1.0), "dropout=1.0 must be at least 0 and below 1"),
        (lambda: AdaptiveSpan(2, 8, init=2.0), "init=2.0 a fraction from 0 to 1"),
        (lambda: AdaptiveAttention(8, 2, 8)(torch.ones(2, 8)), "hidden states are (2, 8), and must be (B, M, 8)"),
        (lambda: adaptive_attention(HEADS, HEADS, HEADS, AdaptiveSpan(2, 8), bounds=[40, 8]), "must be 2 whole"),
        (lambda: AdaptiveAttention(8, 2, 8, causal=False)(torch.ones(1, 2, 8), AttentionCache()), "takes no cache"),
        (lambda: AdaptiveAttention(8, 2, 8)(torch.ones(1, 2, 8), None, torch.ones(1, 2)), "must be (1, 2) of"),
        (lambda: adaptive_attention(HEADS, HEADS, HEADS, AdaptiveSpan(3, 8)), "the span has 3 heads"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(call, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        call()


def test_what_torch_takes_and_this_does_not_is_one_sentence():
    hidden = torch.ones(1, 2, 8)
    with pytest.raises(TypeError, match="cache is a Tensor, and must be an AttentionCache; a layer takes one tensor"):
        AdaptiveAttention(8, 2, 8)(hidden, hidden, hidden)
