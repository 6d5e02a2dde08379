"""Token by token a model predicts what it predicts block by block, from no more than each head sees."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from adaptive_span import Transformer
from adaptive_span.attention import decoding
from adaptive_span.attention.decoding import HeadRings
from adaptive_span.attention.group_rings import GroupRings
from adaptive_span.attention.head_groups import group_heads
from adaptive_span.config.registry import ATTENTIONS
from adaptive_span.errors import UserError
from adaptive_span.model.decoder import Decoder
from adaptive_span.model.sampling import Sampling
from tests.unit.model.test_model import small, with_spans

KINDS = [{}, {"adaptive_span": False}, {"ffn_size": 0, "memory_size": 5}, {"cutoffs": [4, 8], "division": 2}]


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 90), st.sampled_from(KINDS), st.sampled_from(["float32", "float64"]))
def test_tokens_are_predicted_as_in_blocks(seed, prompt, changes, precision):
    """In double precision by PyTorch, in single precision by C++."""
    torch.manual_seed(seed)
    model = with_spans(Transformer(small(**changes), 11).to(getattr(torch, precision)).eval(), seed)
    text = torch.randint(11, (2, 120))
    with torch.no_grad():
        blocks, cache = [], model.empty_cache(2)
        for block in text.split(8, 1):
            expected, cache = model.log_probabilities(block, cache)
            blocks.append(expected)
    decoder = Decoder(model, 2)
    predicted = [decoder.read_prompt(text[:, :prompt])]
    predicted += [decoder.read(token).clone() for token in text[:, prompt:].unbind(1)]
    tolerance = {"float32": 1e-4, "float64": 1e-9}[precision]
    expected = torch.cat(blocks, 1)[:, prompt - 1 :]
    torch.testing.assert_close(torch.stack(predicted, 1), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", [HeadRings, GroupRings])
def test_a_ring_holds_what_a_head_or_a_group_sees_and_more_changes_nothing(kind, monkeypatch):
    monkeypatch.setattr(decoding, "runs_on", lambda device, dtype: kind is HeadRings)
    model = with_spans(Transformer(small(num_layers=1, max_span=500), 11), 3)
    [spans] = model.spans().tolist()
    short, longer = Decoder(model, 4), Decoder(model, 4, [[500.0] * 3])
    bounds = [math.ceil(span) for span in spans]
    seen = sum(bounds) if kind is HeadRings else sum(len(group.heads) * group.span for group in group_heads(bounds))
    assert short.cache_bytes == 2 * 4 * seen * 4 * 4  # keys and values, rows, tokens, head size, bytes
    assert longer.cache_bytes == 2 * 4 * 1500 * 4 * 4
    text = torch.randint(11, (4, 600))
    torch.testing.assert_close(longer.read_prompt(text[:, :5]), short.read_prompt(text[:, :5]))
    for token in text[:, 5:].unbind(1):  # more tokens than any ring has
        found = longer.read(token)
    for token in text[:, 5:].unbind(1):
        expected = short.read(token)
    torch.testing.assert_close(found, expected)


@settings(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from(KINDS))
def test_in_bf16_the_cache_is_smaller_and_predictions_are_the_same_but_for_rounding(seed, changes):
    torch.manual_seed(seed)
    model = with_spans(Transformer(small(**changes), 11), seed)
    exact, rounded = Decoder(model, 2), Decoder(model, 2, dtype=torch.bfloat16)
    assert rounded.cache_bytes < 0.8 * exact.cache_bytes  # in groups, where the exact one may have a ring for each head
    text = torch.randint(11, (2, 40))
    torch.testing.assert_close(rounded.read_prompt(text[:, :9]), exact.read_prompt(text[:, :9]))
    errors = torch.cat([(rounded.read(x).exp() - exact.read(x).exp()).abs() for x in text[:, 9:].unbind(1)])
    assert 0 < errors.max() < 0.02
    assert errors.mean() < 0.003


class Allocations(TorchDispatchMode):
    """The operations that are made, with the sizes of the tensors that they return."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, operation, types, inputs=(), named=None):
        output = operation(*inputs, **(named or {}))
        tensors = [each for each in torch.utils._pytree.tree_leaves(output) if isinstance(each, torch.Tensor)]
        self.made.append((str(operation), [tuple(each.shape) for each in tensors]))
        return output


@settings(max_examples=10)
@given(st.integers(0, 1000), st.sampled_from(KINDS), st.sampled_from(["float32", "float64"]))
def test_a_late_token_takes_the_memory_and_the_work_of_the_first(seed, changes, precision):
    torch.manual_seed(seed)
    model = with_spans(Transformer(small(**changes), 11).to(getattr(torch, precision)), seed)
    decoder = Decoder(model, 2)
    decoder.read_prompt(torch.randint(11, (2, 5)))
    held = decoder.cache_bytes
    kept = [tensor for layer in decoder.layers for tensor in tensors_of(layer.rings)]
    places = [(tensor.data_ptr(), tensor.shape) for tensor in kept]
    steps = []
    for number, token in enumerate(torch.randint(11, (300, 2)), 1):
        if number not in (1, 150, 300):  # any ring has gone round several times
            decoder.read(token)
            continue
        with Allocations() as allocations:
            decoder.read(token)
        steps.append(allocations.made)
    assert len(steps[0]) > 5
    assert steps[0] == steps[1] == steps[2]
    assert decoder.cache_bytes == held
    kept = [tensor for layer in decoder.layers for tensor in tensors_of(layer.rings)]
    assert [(tensor.data_ptr(), tensor.shape) for tensor in kept] == places


def tensors_of(rings):
    """Keys and values, wherever they lie."""
    return rings.rings if isinstance(rings, HeadRings) else [ring.keys_values for ring in rings.rings]


def test_an_attention_that_computes_something_else_is_refused():
    ATTENTIONS.add("other", "adaptive_span.attention.dense:attend")
    try:
        with pytest.raises(UserError, match="attention=other is not known to compute what the project's own does"):
            Decoder(Transformer(small(attention="other"), 11), 1)
    finally:
        ATTENTIONS._targets.pop("other")


def test_generate_is_drawn_from_what_the_model_predicts_and_repeats():
    torch.manual_seed(1)
    model = with_spans(Transformer(small(), 11).double(), 1)
    prompt = torch.randint(11, (3, 9))
    texts = model.generate(prompt, 40, seed=5)
    assert texts.shape == (3, 40)
    assert torch.equal(texts, model.generate(prompt, 40, seed=5))
    assert not torch.equal(texts, model.generate(prompt, 40, seed=6))
    greedy = model.generate(prompt, 12, Sampling(temperature=0))
    whole = torch.cat([prompt, greedy], 1)
    with torch.no_grad():
        likely, _ = model.eval().log_probabilities(whole, model.empty_cache(3))
    assert torch.equal(likely[:, 8:-1].argmax(2), greedy)


@settings(max_examples=30)
@given(st.integers(1, 12), st.floats(0.05, 1.0), st.floats(0.3, 3.0), st.integers(0, 99))
def test_draws_come_from_the_likely_tokens_alone(top_k, top_p, temperature, seed):
    log_p = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed)).log_softmax(1)
    source = torch.Generator().manual_seed(0)
    drawn = {int(Sampling(temperature, top_k, top_p).draw(log_p, source)) for _ in range(40)}
    order = log_p[0].argsort(descending=True).tolist()
    shares = (log_p / temperature)[0, order[:top_k]].softmax(0)  # of the k most likely
    allowed = 1 + int((shares.cumsum(0) < top_p - 1e-6).sum())
    assert drawn <= set(order[:allowed])


def test_draws_follow_the_probabilities():
    log_p = torch.tensor([[0.1, 0.2, 0.7]]).log().expand(20_000, 3)
    counts = Sampling().draw(log_p, torch.Generator().manual_seed(0)).bincount() / 20_000
    assert counts.tolist() == pytest.approx([0.1, 0.2, 0.7], abs=0.02)
