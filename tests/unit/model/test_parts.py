"""Norms, activations, QK-norm, shared vectors and initialisation against their definitions, and in every way to run."""

import math

import pytest
import torch
from torch import Tensor

from adaptive_span import Transformer
from adaptive_span.config.registry import ATTENTIONS
from adaptive_span.errors import UserError
from adaptive_span.hardware import capacity
from adaptive_span.model import flops
from adaptive_span.model.decoder import Decoder
from tests.unit.model.test_model import small, with_spans

PARTS = {
    "post": {"norm_kind": "rms", "activation": "gelu", "qk_norm": True},
    "pre": {"norm": "pre", "norm_kind": "rms", "activation": "relu2", "tied_output": True, "init": "small_branches"},
    "pre layer": {"norm": "pre", "activation": "swiglu", "qk_norm": True},
}
parts = pytest.mark.parametrize("changes", PARTS.values(), ids=PARTS)


def built(changes, **sizes) -> Transformer:
    torch.manual_seed(0)
    return with_spans(Transformer(small(**changes, **sizes), 11).double(), 1)


def normalised(x, norm):
    if isinstance(norm, torch.nn.LayerNorm):
        centered = x - x.mean(-1, keepdim=True)
        return centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight


def attention(x, model, layer):
    """All queries and keys of a text at once, where zeros stand before it."""
    block, config = model.attention_blocks[layer].attention, model.config
    length, size = len(x), config.head_size
    before = torch.cat([x.new_zeros(config.max_span, x.size(1)), x])
    of_heads = [(y @ w.weight.t()).unflatten(1, (-1, size)).transpose(0, 1) for y, w in (
        (x, block.query), (before, block.key), (before, block.value))]  # (H, M, D), (H, L + M, D) twice  # fmt: skip
    if config.qk_norm:
        of_heads[:2] = [y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() for y in of_heads[:2]]
    query, key, value = of_heads
    distance = torch.arange(length)[:, None] + config.max_span - torch.arange(length + config.max_span)
    seen = (distance >= 1) & (distance <= config.max_span)
    positions = model.positions.t()[(config.max_span - distance).clamp(0, config.max_span - 1)]  # (M, L + M, D)
    scores = (query @ key.transpose(1, 2) + torch.einsum("hmd,mnd->hmn", query, positions)) / math.sqrt(size)
    spans = block.span.fraction[:, None, None] * config.max_span
    mask = ((config.ramp + 1 + spans - distance) / config.ramp).clamp(0, 1) * seen
    weights = mask * scores.exp()
    heads = weights / weights.sum(2, keepdim=True) @ value
    return heads.transpose(0, 1).flatten(1) @ block.output.weight.t()


def between(x, block, activation):
    inner = block.expand(x)
    if activation == "swiglu":
        gate = block.gate(x)
        inner = inner * gate * gate.sigmoid()
    elif activation == "gelu":
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
    else:
        inner = inner.clamp(min=0) ** 2
    return block.contract(inner)


@parts
def test_they_are_what_their_papers_define(changes):
    model = built(changes)
    config, text = model.config, torch.randint(11, (90,))
    x = model.embedding.weight[text] * (math.sqrt(config.hidden_size) if config.tied_output else 1)
    is_pre = config.norm == "pre"
    norm = model.first_norm
    for layer, (a, f) in enumerate(zip(model.attention_blocks, model.feed_forward_blocks, strict=True)):
        for block, branch in (
            (a, lambda x, layer=layer: attention(x, model, layer)),
            (f, lambda x, f=f: between(x, f, config.activation)),
        ):
            x = x + branch(normalised(x, norm)) if is_pre else normalised(x + branch(x), block.norm)
            norm = block.norm
    x = normalised(x, norm) if is_pre else x
    table = model.embedding.weight if config.tied_output else model.output.weight
    expected = (x @ table.t() + model.output.bias).log_softmax(-1)
    got, _ = model.log_probabilities(text[None], model.empty_cache(1))
    torch.testing.assert_close(got[0], expected)


@parts
@pytest.mark.parametrize("attention", [name for name in ATTENTIONS if name not in ("dense", "fused")])
def test_every_implementation_block_length_and_cache_computes_the_same(attention, changes):
    sizes = {"num_heads": 4, "max_span": 200}
    model, dense = built(changes, attention=attention, **sizes), built(changes, attention="dense", **sizes)
    text = torch.randint(11, (2, 61))
    expected = same_in_blocks(model, dense, text, 25)
    kept, again = model.empty_inference_cache(), []
    with torch.no_grad():
        for tokens, targets in zip(text[:, :-1].split(7, 1), text[:, 1:].split(7, 1), strict=True):
            nll, kept = model(tokens, targets, kept)
            again.append(nll)
    torch.testing.assert_close(torch.cat(again, 1), expected)


def test_the_kernels_of_attention_take_what_qk_norm_gives_them():
    """Interpreted, which is slow."""
    sizes = {"num_layers": 1, "num_heads": 2, "max_span": 12, "ramp": 4}
    model, dense = (built(PARTS["post"], attention=each, **sizes).float() for each in ("fused", "dense"))
    same_in_blocks(model, dense, torch.randint(11, (1, 13)), 6)


def same_in_blocks(model: Transformer, dense: Transformer, text: Tensor, size: int) -> Tensor:
    """Nats of one whole block, which those of several blocks and the gradients of the first one agree with."""
    rows = len(text)
    expected, _ = dense(text[:, :-1], text[:, 1:], dense.empty_cache(rows))
    cache, found = model.empty_cache(rows), []
    for tokens, targets in zip(text[:, :-1].split(size, 1), text[:, 1:].split(size, 1), strict=True):
        nll, cache = model(tokens, targets, cache)
        found.append(nll)
    torch.testing.assert_close(torch.cat(found, 1), expected)
    expected[:, :size].mean().backward()
    found[0].mean().backward()
    for (name, parameter), other in zip(model.named_parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)
    return expected


@parts
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_tokens_are_predicted_one_by_one_as_in_blocks(changes, precision):
    model = built(changes).to(precision).eval()
    text = torch.randint(11, (2, 100))
    with torch.no_grad():
        expected, _ = model.log_probabilities(text, model.empty_cache(2))
    decoder = Decoder(model, 2)
    predicted = [decoder.read_prompt(text[:, :9]), *(decoder.read(token).clone() for token in text[:, 9:].unbind(1))]
    torch.testing.assert_close(torch.stack(predicted, 1), expected[:, 8:], atol=1e-4, rtol=0)


@parts
def test_their_parameters_and_operations_are_counted(changes):
    model = built(changes)
    assert capacity.parameters(model.config, 11) == sum(p.numel() for p in model.parameters())
    spans = model.spans().tolist()
    plain = flops.forward(small(), 11, spans)
    more = 1.5 if model.config.activation == "swiglu" else 1
    assert flops.forward(model.config, 11, spans)["feed_forward"] == more * plain["feed_forward"]


def test_branches_begin_smaller_by_the_root_of_the_number_of_blocks():
    small_ones, published = built({"init": "small_branches"}), built({})
    for (name, got), (_, expected) in zip(small_ones.named_parameters(), published.named_parameters(), strict=True):
        is_last = name.endswith(("attention.output.weight", "contract.weight"))
        torch.testing.assert_close(got, expected / 2 if is_last else expected)  # of 4 blocks


def test_vectors_that_are_shared_are_stored_for_scores_and_read_at_a_variance_of_one():
    torch.manual_seed(0)
    model = Transformer(small(tied_output=True, hidden_size=48), 4000)
    assert model.output.weight is model.embedding.weight
    assert model.embedding(torch.arange(4000)).square().mean().item() == pytest.approx(1, abs=0.02)
    assert (model.output.weight.square().sum(1).mean()).item() == pytest.approx(1, abs=0.02)


def test_parts_that_do_not_go_together_are_refused():
    for changes, told in (
        ({"activation": "gelu", "ffn_size": 0, "memory_size": 4}, "but model.ffn_size=0; leave it out"),
        ({"tied_output": True, "cutoffs": [4]}, "model.tied=true shares the vectors"),
        ({"norm": "sandwich"}, "model.norm=sandwich must be one of post, pre"),
    ):
        with pytest.raises(UserError, match=told):
            small(**changes).validate()
