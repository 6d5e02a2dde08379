"""Every architecture: its attention is found, and replaced by one that sees as far as spans say."""

from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from adaptive_span.errors import UserError
from adaptive_span.hf import heads
from adaptive_span.hf.learned import HeadSpans
from tests.unit.hf.tiny_models import OWN, tiny

CONTEXT = 64


@pytest.mark.parametrize("kind", OWN)
def test_spans_replace_the_attention_of_an_architecture_and_nothing_else(kind: str) -> None:
    model = tiny(kind)
    tokens = torch.randint(97, (2, CONTEXT), generator=torch.Generator().manual_seed(1))
    expected = model(tokens, use_cache=False).logits
    layers = heads.find(model)
    spans = heads.attach(model, layers, lambda layer: HeadSpans(layer.heads, CONTEXT, ramp=8, sinks=2))
    sliding = [layer.index for layer in layers if layer.window is not None]
    assert sliding == {"gemma2": [0, 2], "gemma3_text": [0]}.get(kind, [])
    assert len(spans) == len(layers) - len(sliding)
    assert [layer.kv_heads for layer in layers] == [4 if kind in ("gpt2", "gpt_neox") else 2] * len(layers)
    whole = model(tokens, use_cache=False).logits
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)  # every head sees all

    for each in spans:
        each.span.fraction.requires_grad_()
        each.set_([10.5, 20, 33.25, CONTEXT])
    near = model(tokens, use_cache=False).logits
    torch.testing.assert_close(near[:, :6], expected[:, :6], rtol=1e-4, atol=1e-5)  # before any ramp
    assert (near[:, 30:] - expected[:, 30:]).abs().max() > 1e-4
    near.square().mean().backward()
    grads = [each.span.fraction.grad for each in spans]
    assert all(grad is not None and (grad[:3] != 0).all() for grad in grads)

    padded = torch.cat([tokens[:, :5], tokens], dim=1)  # padding on the left: every score is computed, and masked
    mask = torch.ones_like(padded)
    mask[:, :5] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        by_scores = model(padded, attention_mask=mask, position_ids=places, use_cache=False).logits[:, 5:]
    torch.testing.assert_close(by_scores, near.detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=97, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
            ),
            "an encoder with a decoder",
        ),
        (
            lambda: BertForMaskedLM(
                BertConfig(
                    vocab_size=97, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
                )
            ),
            "BertForMaskedLM (sees later|does not call)",
        ),
        (lambda: BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=16, n_layer=1, n_head=2)), "BloomForCausalLM"),
    ],
)
def test_a_model_whose_attention_cannot_be_replaced_is_one_sentence(model: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        heads.find(model().eval())
