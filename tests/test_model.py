"""Properties of the whole model: its cache, its spans, activation checkpointing, compilation, import as a library."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_span import AdaptiveSpan, ModelConfig, Transformer


def small(**changes) -> ModelConfig:
    sizes = {"num_layers": 2, "hidden_size": 12, "ffn_size": 16, "num_heads": 3, "max_span": 70, "block_size": 8}
    return ModelConfig(name="test", **(sizes | {"ramp": 5} | changes))


def with_spans(model: Transformer, seed: int) -> Transformer:
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, AdaptiveSpan):
            module.fraction.data = torch.rand(module.fraction.shape, generator=draw).to(module.fraction.dtype)
    return model


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.lists(st.integers(1, 40), min_size=2, max_size=5), st.booleans(), st.booleans())
def test_one_long_block_is_several_short_ones(seed, blocks, adaptive, trim):
    torch.manual_seed(seed)
    model = with_spans(Transformer(small(adaptive_span=adaptive, trim_cache=trim), 11).double(), seed)
    text = torch.randint(11, (2, sum(blocks) + 1))
    whole, _ = model(text[:, :-1], text[:, 1:], model.empty_cache(2))
    cache, parts = model.empty_cache(2), []
    for tokens, targets in zip(text[:, :-1].split(blocks, 1), text[:, 1:].split(blocks, 1), strict=True):
        nll, cache = model(tokens, targets, cache)
        parts.append(nll)
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_a_cache_is_no_longer_than_the_longest_head_of_its_layer():
    model = Transformer(small(max_span=1000, span_init=0.1), 11)
    model.layers[1].attention.span.fraction.data[:] = torch.tensor([0.0, 0.3, 0.01])
    text = torch.randint(11, (1, 901))
    _, cache = model(text[:, :-1], text[:, 1:], model.empty_cache(1))
    assert [past.size(1) for past in cache] == [128 + 64, 320 + 64]  # 105 and 305 tokens, in steps of 64, and a spare


def test_no_query_sees_itself_or_the_future():
    model = Transformer(small(), 11).double()
    text = torch.randint(10, (1, 20))
    changed = text.clone()
    changed[0, 12] = 10
    before, _ = model.log_probabilities(text, model.empty_cache(1))
    after, _ = model.log_probabilities(changed, model.empty_cache(1))
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


def test_spans_are_kept_between_zero_and_the_maximum():
    model = Transformer(small(), 11)
    for layer, value in zip(model.layers, (-0.3, 1.7), strict=True):
        layer.attention.span.fraction.data.fill_(value)
    model.clamp_spans_()
    assert model.spans().tolist() == [[5.0] * 3, [70.0] * 3]  # never less than the ramp, never more than the maximum
    assert model.span_penalty().item() == 70


def gradients(model, text, seed):
    torch.manual_seed(seed)
    model.zero_grad()
    nll, _ = model(text[:, :-1], text[:, 1:], model.empty_cache(len(text)))
    (nll.mean() + 1e-3 * model.span_penalty()).backward()
    return nll.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # hidden by torch.compile
@pytest.mark.parametrize("way", ["activation checkpointing", "compiled"])
def test_another_way_to_run_it_changes_nothing(way):
    torch.manual_seed(0)
    model = with_spans(Transformer(small(dropout=0.2 if way == "activation checkpointing" else 0.0), 11), 0)
    text = torch.randint(11, (2, 25))
    expected = gradients(model, text, seed=5)
    if way == "activation checkpointing":
        model.activation_checkpointing = True
    else:
        for layer in model.layers:
            layer.compile()
    torch.testing.assert_close(gradients(model, text, seed=5), expected)


def test_the_library_needs_neither_hydra_nor_wandb():
    code = (
        "import sys; from adaptive_span import AdaptiveSpan, AdaptiveSpanAttention, Transformer;"
        "sys.exit(bool({'hydra', 'wandb', 'submitit', 'omegaconf'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
