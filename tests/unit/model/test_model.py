"""Properties of the whole model: its cache, its spans, activation checkpointing, compilation, import as a library."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_span import AdaptiveSpan, ModelConfig, Transformer
from adaptive_span.attention.context import join
from adaptive_span.config.registry import ATTENTIONS
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError
from adaptive_span.model.elementwise import with_operand
from adaptive_span.model.embedding import Lookup
from adaptive_span.training import optimizer as optimizers
from adaptive_span.training.schedule import learning_rate
from tests.unit.config.test_config import composed


def small(**changes) -> ModelConfig:
    sizes = {"num_layers": 2, "hidden_size": 12, "ffn_size": 16, "num_heads": 3, "max_span": 70, "block_size": 8}
    return ModelConfig(name="test", **(sizes | {"ramp": 5} | changes))


def with_spans(model: Transformer, seed: int) -> Transformer:
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, AdaptiveSpan):
            module.fraction.data = torch.rand(module.fraction.shape, generator=draw).to(module.fraction.dtype)
    return model


@settings(max_examples=20)
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


@pytest.mark.parametrize("attention", [*ATTENTIONS])
@pytest.mark.parametrize("changes", [{}, {"adaptive_span": False}, {"ffn_size": 0, "memory_size": 5}], ids=str)
def test_inference_from_keys_and_values_computes_the_same(attention, changes):
    torch.manual_seed(0)
    model = with_spans(Transformer(small(attention=attention, num_heads=4, max_span=200, **changes), 11), 1)
    model = model.float() if attention == "fused" else model.double()
    text = torch.randint(11, (2, 61))
    cache, kept = model.empty_cache(2), model.empty_inference_cache()
    with torch.no_grad():
        for tokens, targets in zip(text[:, :-1].split(25, 1), text[:, 1:].split(25, 1), strict=True):
            expected, cache = model(tokens, targets, cache)
            got, kept = model(tokens, targets, kept)
            torch.testing.assert_close(got, expected)
    with pytest.raises(RuntimeError, match="gradients"):
        model(tokens, targets, kept)


def test_a_cache_is_no_longer_than_the_longest_head_of_its_layer():
    model = Transformer(small(max_span=1000, span_init=0.1), 11)
    model.attention_blocks[1].attention.span.fraction.data[:] = torch.tensor([0.0, 0.3, 0.01])
    text = torch.randint(11, (1, 901))
    _, cache = model(text[:, :-1], text[:, 1:], model.empty_cache(1))
    assert [past.size(1) for past in cache.layers] == [
        128 + 64,
        320 + 64,
    ]  # 105 and 305 tokens, in steps of 64, and a spare


def test_a_cache_is_kept_in_the_precision_that_it_is_used_in_and_that_may_change():
    model = with_spans(Transformer(small(), 11), 0)
    text = torch.randint(11, (2, 17))
    blocks = [(text[:, at : at + 8], text[:, at + 1 : at + 9]) for at in (0, 8)]
    _, cache = model(*blocks[0], model.empty_cache(2))
    expected, _ = model(*blocks[1], cache)
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=not low):
            _, cache = model(*blocks[0], model.empty_cache(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            nll, after = model(*blocks[1], cache)
        assert {past.dtype for past in cache.layers} == {torch.float32 if low else torch.bfloat16}
        assert {past.dtype for past in after.layers} == {torch.bfloat16 if low else torch.float32}
        torch.testing.assert_close(nll, expected, atol=0.03, rtol=0)


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
    for layer, value in zip(model.attention_blocks, (-0.3, 1.7), strict=True):
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
@pytest.mark.parametrize("attention", ["banded", "fused"])
def test_another_way_to_run_it_changes_nothing(attention, way):
    torch.manual_seed(0)
    dropout = 0.2 if way == "activation checkpointing" else 0.0
    model = with_spans(Transformer(small(dropout=dropout, attention=attention), 11), 0)
    text = torch.randint(11, (2, 25))
    expected = gradients(model, text, seed=5)
    if way == "activation checkpointing":
        model.activation_checkpointing = True
    else:
        for block in (*model.attention_blocks, *model.feed_forward_blocks):
            block.compile()
    torch.testing.assert_close(gradients(model, text, seed=5), expected)


def composed_model(*overrides: str) -> tuple[Transformer, Config]:
    config = composed(
        "model.num_layers=2", "model.hidden_size=16", "model.ffn_size=32", "model.max_span=128", "model.block_size=8",
        "train.warmup_steps=2", *overrides,
    )  # fmt: skip
    torch.manual_seed(0)
    return Transformer(config.model, 60), config


def losses(model: Transformer, config: Config) -> list[float]:
    """Of 12 updates on one short text."""
    optimizer = optimizers.build(config.optimizer, model.named_parameters())
    text, cache, nats = torch.randint(60, (2, 9)), model.empty_cache(2), []
    for step in range(12):
        nll, cache = model(text[:, :-1], text[:, 1:], cache)
        (nll.mean() + config.train.span_penalty * model.span_penalty()).backward()
        optimizers.set_rate(optimizer, learning_rate(step + 1, config.optimizer.lr, config.train))
        optimizers.update(optimizer, config.optimizer, model.parameters())
        model.clamp_spans_()
        optimizer.zero_grad()
        nats.append(nll.mean().item())
    return nats


WORDS = ("data=files", "data.path=DIR", "data.level=word")
ABLATIONS = {
    "fixed span": (("model.adaptive_span=false",), lambda m: (m.spans() == 128).all()),
    "span of a fraction at first": (("model.span_init=0.5",), lambda m: (m.spans() == 64 + 32).all()),
    "length of the ramp": (("model.ramp=8",), lambda m: (m.spans() == 8).all()),
    "cache not trimmed": (("model.trim_cache=false",), lambda m: m.cache_length([64]) == 128),
    "dropout of attention": (
        ("model.attention_dropout=0.5",),
        lambda m: m.attention_blocks[0].attention.dropout == 0.5,
    ),
    "dropout of feed-forward": (("model.ffn_dropout=0.5",), lambda m: m.feed_forward_blocks[0].dropout.p == 0.5),
    "dropout of embeddings": (("model.embedding_dropout=0.2",), lambda m: m.embedding_dropout.p == 0.2),
    "sandwich": (("model.layer_order=sandwich",), lambda m: m.order == "aaff"),
    "another order": (("model.layer_order=affa",), lambda m: m.order == "affa"),
    "attention alone": (("model.ffn_size=0",), lambda m: m.order == "aa"),
    "persistent memory": (("model.ffn_size=0", "model.memory_size=9"), lambda m: m.order == "aa"),
    "words": ((*WORDS, "model.cutoffs=[10,30]"), lambda m: m.output.embedding is m.embedding),
    "words, untied": (
        (*WORDS, "model.cutoffs=[10,30]", "model.tied=false"),
        lambda m: m.output.embedding is not m.embedding,
    ),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_an_override_and_trains(name):
    overrides, holds = ABLATIONS[name]
    model, config = composed_model(*overrides)
    assert holds(model)
    first, *_, last = losses(model, config)
    assert last < first - 0.5


def test_blocks_run_in_the_order_asked_for():
    torch.manual_seed(0)
    model = Transformer(small(layer_order="affa"), 11)
    tokens = torch.randint(11, (2, 6))
    hidden, past, bounds = with_operand(model.embedding(tokens)), model.empty_cache(2).layers, model.span_bounds()
    (first, last), feed_forward = model.attention_blocks, model.feed_forward_blocks

    def attended(block, hidden, past, bounds):
        return block(hidden, join(past, hidden.operand, max(bounds)), model.position_embedding, bounds)

    hidden = feed_forward[1](feed_forward[0](attended(first, hidden, past[0], bounds[0])))
    hidden = attended(last, hidden, past[1], bounds[1])
    torch.testing.assert_close(model.hidden_states(tokens, model.empty_cache(2))[0], hidden.exact)


@pytest.mark.parametrize("tied", [True, False])
def test_an_adaptive_softmax_is_a_distribution_and_its_nll_the_word_s_part_of_it(tied):
    torch.manual_seed(0)
    model = Transformer(small(cutoffs=[3, 7], division=2, tied=tied), 11).double()
    text = torch.randint(7, (3, 15))  # no word of the last cluster
    log_probabilities, _ = model.log_probabilities(text[:, :-1], model.empty_cache(3))
    torch.testing.assert_close(log_probabilities.exp().sum(2), torch.ones(3, 14).double())
    nll, _ = model(text[:, :-1], text[:, 1:], model.empty_cache(3))
    torch.testing.assert_close(nll, -log_probabilities.gather(2, text[:, 1:, None]).squeeze(2))
    nll.mean().backward()
    assert all(p.grad is not None for p in model.parameters())  # as DDP needs it, in every process alike


def test_clusters_must_fit_the_vocabulary():
    with pytest.raises(UserError, match=r"cutoffs=\[20, 50\] must increase and end below the vocabulary's 40 words"):
        Transformer(small(cutoffs=[20, 50], division=2), 40)


def test_the_library_needs_neither_hydra_nor_wandb_nor_triton_nor_a_compiler():
    code = (
        "import importlib.util, sys; find = importlib.util.find_spec;"
        "importlib.util.find_spec = lambda name, *package: None if name == 'triton' else find(name, *package);"
        "import torch; from adaptive_span import AdaptiveAttention, AdaptiveSpan, ModelConfig, Transformer;"
        "model = Transformer(ModelConfig('test', 1, 8, 8, 2, 8, 4), 5);"
        "model.log_probabilities(torch.zeros(1, 4, dtype=torch.long), model.empty_cache(1));"
        "foreign = {'hydra', 'wandb', 'submitit', 'omegaconf', 'adaptive_span.attention.fused', 'torch._dynamo'};"
        "sys.exit(bool(foreign & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_gradient_of_an_embedding_is_a_product():
    tokens, weight = torch.randint(7, (3, 50)), torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(3, 50, 4, dtype=torch.float64)
    expected = torch.autograd.grad(F.embedding(tokens, weight), weight, grad)
    torch.testing.assert_close(torch.autograd.grad(Lookup.apply(tokens, weight), weight, grad), expected)
