"""Properties of the soft mask and of attention, against the sentences that define them."""

import math
import re
import shutil

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adaptive_span.attention import SpanGeometry, banded, tiles
from adaptive_span.attention.context import HiddenStates, join
from adaptive_span.attention.span import AdaptiveSpan, log_soft_mask, upper_bound
from adaptive_span.config.registry import ATTENTIONS
from adaptive_span.hardware import cpp
from tests import dropped
from tests.conftest import ROOT
from tests.dropped import IN_TORCH, choose

shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "heads": st.integers(1, 3),
        "head_size": st.integers(1, 4),
        "block": st.integers(1, 9),
        "past": st.integers(0, 20),
        "max_span": st.integers(1, 24),
        "ramp": st.integers(1, 8),
        "seed": st.integers(0, 2**16),
    }
)


# The fused kernels compute in fp32, or less, whatever they are given.
WAYS = [*ATTENTIONS, IN_TORCH]
IN_DOUBLE = [name for name in WAYS if name != "fused"]
DTYPE = {"fused": torch.float32}
TOLERANCE = {"fused": {"rtol": 2e-5, "atol": 2e-5}}


def close(attention, got, expected):
    torch.testing.assert_close(got.double(), expected.double(), **TOLERANCE.get(attention, {}))


def fractions(heads: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=32), min_size=heads, max_size=heads)


def inputs(batch, heads, head_size, block, past, max_span, ramp, seed, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    size = heads * head_size

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=dtype)

    return {
        "present": normal(batch, block, size),
        "query_weight": normal(size, size) / size**0.5,
        "key_weight": normal(size, size) / size**0.5,
        "value_weight": normal(size, size) / size**0.5,
        "positions": normal(head_size, max_span),
        "past": normal(batch, past, size),  # the one that is a constant
    }


def leaves_of(x):
    return [tensor.requires_grad_() for name, tensor in x.items() if name != "past"]


def call(attend, x, spans, ramp, bounds, dropout=0.0, memory=None):
    weights = x["query_weight"], x["key_weight"], x["value_weight"]
    context = HiddenStates(join(x["past"], x["present"], max(bounds)), x["present"], weights, len(bounds))
    return attend(context, x["positions"], SpanGeometry(spans, ramp, bounds), dropout, memory).output


def by_the_definition(x, heads, spans, ramp):
    """One query, head and distance at a time."""
    (batch, block, _), past, (size, max_span) = x["present"].shape, x["past"].size(1), x["positions"].shape
    states = torch.cat([x["past"], x["present"]], dim=1)
    output = x["present"].new_zeros(batch, block, heads, size)
    for b in range(batch):
        for h in range(heads):
            rows = slice(h * size, (h + 1) * size)
            for m in range(block):
                query = x["query_weight"][rows] @ x["present"][b, m]
                total, result = 0.0, torch.zeros(size, dtype=output.dtype)
                for d in range(1, max_span + 1):
                    place = past + m - d
                    hidden = states[b, place] if place >= 0 else torch.zeros_like(states[b, 0])
                    key, value = x["key_weight"][rows] @ hidden, x["value_weight"][rows] @ hidden
                    score = query @ (key + x["positions"][:, -d]) / math.sqrt(size)
                    mask = 1.0 if spans is None else min(1.0, max(0.0, (ramp + 1 + spans[h].item() - d) / ramp))
                    total, result = total + math.exp(score) * mask, result + math.exp(score) * mask * value
                output[b, m, h] = result / total
    return output


@st.composite
def spans_and_places(draw):
    """A span of some heads, and positions of queries and keys: a sequence's own, or others, whole or not."""
    max_span, ramp = draw(st.integers(1, 200)), draw(st.integers(1, 40))
    span = AdaptiveSpan(2, max_span, ramp).double()
    edges = [z / max_span for z in (0, max_span - ramp, max_span - ramp - 1, max_span) if z >= 0]
    span.fraction.data[:] = torch.tensor(
        draw(st.lists(st.sampled_from(edges) | st.floats(0, 1), min_size=2, max_size=2))
    )
    places = st.lists(st.integers(0, 300) | st.floats(0, 300), min_size=1, max_size=8)
    return span, draw(places), draw(places), draw(st.booleans())


@given(spans_and_places())
def test_the_mask_is_its_definition(case):
    span, queries, keys, include_self = case
    distances = torch.tensor(queries, dtype=torch.float64)[:, None] - torch.tensor(keys, dtype=torch.float64)
    mask = span.mask(distances, include_self)
    assert mask.shape == (2, len(queries), len(keys))
    for h, z in enumerate(span.tokens().tolist()):
        for m, query in enumerate(queries):
            for k, key in enumerate(keys):
                d = query - key
                seen = (d >= 0 if include_self else d > 0) and d <= span.max_span
                expected = min(1.0, max(0.0, (span.ramp + 1 + z - d) / span.ramp)) if seen else 0.0
                assert mask[h, m, k].item() == pytest.approx(expected, abs=1e-9)


@given(spans_and_places())
def test_the_mask_ends_where_a_head_s_effective_span_does(case):
    span, *_ = case
    mask = span.mask(torch.arange(300)[None], include_self=False)[:, 0]  # (H, K)
    reached = (mask > 1e-9).long().mul(torch.arange(300)).amax(1)
    torch.testing.assert_close(reached.double(), (span.effective() - 1e-7).ceil().detach())


@given(st.integers(1, 3), st.integers(1, 12))
def test_weights_times_the_mask_are_those_of_each_query_and_key(batch, length):
    """Also for the last of 50 queries, of which a mask over positions would leave nothing."""
    span, positions = AdaptiveSpan(4, 16, ramp=4), torch.arange(38, 38 + length)
    weights = torch.rand(batch, 4, length, length)
    kept = weights * span.mask(positions[:, None] - positions)
    assert kept.shape == weights.shape
    assert torch.equal(kept.diagonal(dim1=2, dim2=3), weights.diagonal(dim1=2, dim2=3))
    assert (kept.triu(1) == 0).all()
    assert torch.equal(kept.diagonal(-1, 2, 3), weights.diagonal(-1, 2, 3))


@pytest.mark.parametrize("wrong", [50, [[0]], torch.tensor(3), torch.arange(5), torch.zeros(4, 5, 5)], ids=str)
def test_what_are_no_distances_of_queries_and_keys_is_refused(wrong):
    with pytest.raises(TypeError, match=r"a tensor of distances \(M, K\), query position minus key position; not "):
        AdaptiveSpan(4, 16).mask(wrong)


def test_a_span_learns_through_the_mask_even_from_zero():
    span = AdaptiveSpan(1, 100, ramp=4)
    span.mask(torch.arange(10)[None]).sum().backward()
    assert span.fraction.grad.item() == pytest.approx(100 * 5 / 4)  # the ramp with both its ends


@given(st.floats(0, 1, width=32), st.integers(1, 300), st.integers(1, 40))
def test_nothing_is_seen_beyond_the_upper_bound(fraction, max_span, ramp):
    span = AdaptiveSpan(1, max_span, ramp, fraction)
    bound = upper_bound(span.effective().item(), max_span)
    assert 1 <= bound <= max_span
    assert (span.mask(torch.arange(bound + 1, bound + 400)[None]) == 0).all()


def test_a_span_at_zero_feels_what_it_would_gain_by_growing():
    """Both ends of the ramp count, where m is exactly 1 and exactly 0; what lies beyond does not, however likely."""
    spans = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    scores = torch.tensor([9.0, 0.5, 0.1, -0.2], dtype=torch.float64)  # d = 4 … 1; a ramp of 2 ends at d = 3
    values = torch.tensor([5.0, 3.0, 1.0, 2.0], dtype=torch.float64)
    output = (scores + log_soft_mask(spans, 2, 4)[0]).softmax(0) @ values
    output.backward()
    odds = scores.exp()[1:]
    total = odds @ torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert spans.grad.item() == pytest.approx((odds * (values[1:] - output.detach()) / 2 / total).sum().item())


@pytest.mark.parametrize("attention", WAYS)
@settings(max_examples=25)
@given(data=st.data(), shape=shapes)
def test_attention_is_its_definition(attention, data, shape):
    x = inputs(**shape, dtype=DTYPE.get(attention, torch.float64))
    spans = data.draw(st.none() | fractions(shape["heads"]))
    bounds = [shape["max_span"]] * shape["heads"]
    if spans is not None:
        spans = torch.tensor(spans, dtype=x["present"].dtype) * shape["max_span"]
    got = call(choose(attention), x, spans, shape["ramp"], bounds)
    x = {name: tensor.double() for name, tensor in x.items()}
    close(attention, got, by_the_definition(x, shape["heads"], spans, shape["ramp"]))


@pytest.mark.parametrize("attention", WAYS)
@settings(max_examples=50)
@given(data=st.data(), shape=shapes)
def test_trimmed_is_untrimmed(attention, data, shape):
    x = inputs(**shape, dtype=DTYPE.get(attention, torch.float64))
    spans = torch.tensor(data.draw(fractions(shape["heads"])), dtype=x["present"].dtype) * shape["max_span"]
    full = [shape["max_span"]] * shape["heads"]
    tight = [min(shape["max_span"], math.floor(z) + shape["ramp"] + 1) for z in spans.tolist()]
    slack = [data.draw(st.integers(bound, shape["max_span"])) for bound in tight]
    untrimmed = call(choose(attention), x, spans, shape["ramp"], full)
    for bounds in (tight, slack):
        close(attention, call(choose(attention), x, spans, shape["ramp"], bounds), untrimmed)


@st.composite
def layers(draw, max_spans=(1, 63, 64, 65, 200, 700), blocks=(1, 7, 63, 64, 65, 128, 130), most_heads=5):
    """Blocks and spans of real sizes: at 0, at the maximum, equal, and just across the border of a tile."""
    max_span = draw(st.sampled_from(max_spans))
    heads = draw(st.integers(1, most_heads))
    ramp = draw(st.sampled_from([1, 32]))
    edges = [
        z for z in (0, 31, 32, 33, 62, 63, 64, 65, 127, 255, 256, max_span - ramp - 1, max_span) if 0 <= z <= max_span
    ]
    spans = draw(st.lists(st.sampled_from(edges) | st.floats(0, max_span), min_size=heads, max_size=heads))
    sizes = {"batch": draw(st.integers(1, 2)), "heads": heads, "head_size": draw(st.sampled_from([1, 3, 8]))}
    sizes |= {"block": draw(st.sampled_from(blocks)), "past": draw(st.sampled_from([0, 40, 300, 900]))}
    return sizes | {"max_span": max_span, "ramp": ramp, "seed": 0}, spans, draw(st.sampled_from([0, 1, 9]))


def output_and_gradients(attention, layer, device="cpu", dtype=torch.float64):
    """Of everything that has one, in double precision."""
    shape, spans, memory_size = layer
    heads, size, longest = shape["heads"], shape["head_size"], shape["max_span"]
    x = {name: tensor.to(device, dtype) for name, tensor in inputs(**shape).items()}
    leaves, memory = leaves_of(x), []
    if memory_size:
        draw = torch.Generator().manual_seed(1)
        sizes = ((heads, size, memory_size), (heads, memory_size, size))
        memory = [torch.randn(*s, generator=draw, dtype=torch.float64).to(device, dtype) for s in sizes]
        leaves += [tensor.requires_grad_() for tensor in memory]
    z, bounds = None, [longest] * heads
    if spans is not None:
        z = torch.tensor(spans, device=device, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
        bounds = [upper_bound(min(span + shape["ramp"], longest), longest) for span in spans]
    output = call(choose(attention), x, z, shape["ramp"], bounds, memory=memory or None)
    output.square().sum().backward()
    return [x.double().cpu() for x in (output, *(leaf.grad for leaf in leaves), *([] if z is None else [z.grad]))]


SHAPE = {"batch": 2, "heads": 3, "head_size": 3, "block": 128, "past": 300, "max_span": 700, "ramp": 32, "seed": 0}


@pytest.mark.parametrize("attention", ["banded", IN_TORCH])
@settings(max_examples=60)
@given(layer=layers())
@example(layer=(SHAPE, [400.0, 0.0, 100.0], 0))  # several whole tiles of heads that are alone, and not in their order
@example(layer=(SHAPE, [400.0, 0.0, 100.0], 9))
def test_banded_computes_what_dense_does(attention, layer):
    torch.testing.assert_close(output_and_gradients(attention, layer), output_and_gradients("dense", layer))


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no compiler")
def test_banded_is_compiled_for_a_cpu():
    assert cpp.library(tiles.SOURCE) is not None


def test_what_cannot_be_compiled_is_told_once_and_pytorch_computes_it(monkeypatch, capsys, tmp_path):
    layer = (SHAPE, [400.0, 0.0, 100.0], 0)
    compiled = output_and_gradients("banded", layer)
    monkeypatch.setenv("CXX", "no_such_compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpp.library.cache_clear()
    found = [output_and_gradients("banded", layer) for _ in range(2)]
    cpp.library.cache_clear()
    torch.testing.assert_close(found, [compiled, compiled])
    assert capsys.readouterr().err.count("there is no C++ compiler no_such_compiler") == 1


def test_any_number_of_threads_computes_the_same_bits():
    threads, found = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        leaves = {name: tensor.requires_grad_() for name, tensor in dropped.layer("cpu").items()}
        output = dropped.attend("banded", leaves, 0.4, low=False)
        output.square().sum().backward()
        found.append([output, *(leaf.grad for leaf in leaves.values())])
    torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


def test_compiled_or_not_dropout_draws_the_same():
    x = dropped.layer("cpu")
    torch.testing.assert_close(
        *(dropped.attend(way, x, 0.4, False) for way in ("banded", IN_TORCH)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("attention", IN_DOUBLE)
@pytest.mark.parametrize("spans", [None, [2.3, 0.4], [6.6, 0.7]])
def test_gradients_are_derivatives(attention, spans):
    x = inputs(batch=1, heads=2, head_size=2, block=3, past=4, max_span=8, ramp=3, seed=0)
    leaves = leaves_of(x)
    if spans is not None:
        leaves.append(torch.tensor(spans, dtype=torch.float64, requires_grad=True))

    def output(*tensors):
        return call(choose(attention), x, None if spans is None else tensors[-1], 3, [8, 8])  # x holds the others

    assert torch.autograd.gradcheck(output, tuple(leaves))


@pytest.mark.parametrize("attention", IN_DOUBLE)
def test_dropout_keeps_the_mean(attention):
    x = inputs(batch=2, heads=2, head_size=4, block=8, past=8, max_span=12, ramp=4, seed=1)
    spans, bounds = torch.tensor([3.0, 6.0], dtype=torch.float64), [12, 12]
    torch.manual_seed(0)
    attend = choose(attention)
    mean = torch.stack([call(attend, x, spans, 4, bounds, dropout=0.4) for _ in range(3000)]).mean(0)
    without = call(attend, x, spans, 4, bounds)
    assert not torch.equal(call(attend, x, spans, 4, bounds, dropout=0.4), without)
    torch.testing.assert_close(mean, without, atol=0.1, rtol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("low", "tolerance"), [(False, 1e-5), (True, 5e-2)])
@pytest.mark.parametrize("attention", ["dense", "banded", IN_TORCH])
def test_with_dropout_too_attention_is_its_definition(attention, low, tolerance, dropout):
    errors = dropped.errors(attention, "cpu", dropout, low)
    assert max(errors.values()) < tolerance, errors


def test_dropout_keeps_its_rate_in_16_bits_too():
    weights = torch.ones(2000, 2000, dtype=torch.bfloat16)
    torch.manual_seed(0)
    kept = (banded.draw_factors(weights, 0.4) > 0).double().mean().item()
    assert kept == pytest.approx(0.6, abs=4 * (0.24 / weights.numel()) ** 0.5)


@pytest.mark.parametrize("attention", ["banded", IN_TORCH, "fused"])
def test_autocast_changes_no_type_inside_attention(attention):
    """A CPU's autocast makes products in bf16, a GPU's also softmax in fp32: each would mix types in there."""

    def gradients(autocast):
        draw = torch.Generator().manual_seed(0)
        shapes = ((2, 16, 3, 8), (2, 56, 3, 2, 8), (8, 40), (3, 8, 5), (3, 5, 8))
        leaves = [torch.randn(*shape, generator=draw).requires_grad_() for shape in shapes]
        spans = torch.tensor([0.0, 30.0, 8.0], requires_grad=True)
        query, keys_values, positions, *memory = leaves
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            geometry = SpanGeometry(spans, 8, [8, 40, 16])
            context = dropped.Given(query, keys_values)
            output = choose(attention)(context, positions, geometry, 0.3, memory).output
            output.square().sum().backward()
        return [output, *(leaf.grad for leaf in leaves), spans.grad]

    assert all(map(torch.equal, gradients(True), gradients(False)))


def test_every_autograd_function_chooses_its_own_types():
    named = re.compile(r"autograd(\.| import .*)\bFunction\b")
    files = [path.name for path in (ROOT / "adaptive_span").rglob("*.py") if named.search(path.read_text())]
    assert files == ["own_types.py"]
