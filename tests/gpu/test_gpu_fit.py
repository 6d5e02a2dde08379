"""Spans of transformers models on a GPU: the numbers of a CPU, the text of the whole cache, and a fit."""

import sys

import pytest
import torch

pytest.importorskip("transformers", reason="the models are those of transformers")

from transformers import DynamicCache

from adaptive_span import hf
from adaptive_span.hf import heads
from adaptive_span.hf.learned import HeadSpans
from adaptive_span.hf.losses import text_loss
from adaptive_span.hf.spans import load
from tests.conftest import finish
from tests.unit.hf.byte_tokenizer import tokenizer
from tests.unit.hf.test_cache import CACHE, made
from tests.unit.hf.tiny_models import tiny

pytestmark = pytest.mark.gpu

LOOKS = [10.5, 20.0, 133.25, 300.0]  # of each layer's heads, tokens


def loss_and_gradients(kind, device, dtype):
    model = tiny(kind, max_position_embeddings=300)
    for weight in model.parameters():
        weight.mul_(3 if weight.dim() > 1 else 1)  # so that attention is no mean of everything
    layers = heads.find(model)
    spans = heads.attach(model, layers, lambda layer: HeadSpans(layer.heads, 300, ramp=8, sinks=2))
    model = model.to(device, dtype)
    for each in spans:
        each.to(device, torch.float32)
        each.set_(LOOKS)
        each.span.fraction.requires_grad_()
    tokens = torch.randint(97, (300,), generator=torch.Generator().manual_seed(1)).to(device)
    loss = text_loss(model, tokens)
    loss.backward()
    return loss.detach().cpu().double(), torch.stack([each.span.fraction.grad.cpu().double() for each in spans])


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_loss_and_gradients_are_those_of_a_cpu(kind, dtype, within):
    loss, gradients = loss_and_gradients(kind, "cuda", dtype)
    expected, expected_gradients = loss_and_gradients(kind, "cpu", torch.float32)
    assert abs(loss - expected) < within * 0.1
    assert (gradients - expected_gradients).norm() < within * expected_gradients.norm()


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_its_cache_gives_the_text_of_the_whole_cache(kind):
    model = made(kind, hard=False)[0].cuda()
    tokens = torch.randint(2, 97, (2, 200), generator=torch.Generator().manual_seed(1)).cuda()
    caches = [hf.SpanCache(model), DynamicCache(config=model.config)]
    texts = [
        model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=40, do_sample=False, **{CACHE: cache}
        )
        for cache in caches
    ]
    assert torch.equal(*texts)


def test_a_fit_meets_its_budget(tmp_path):
    model = tiny("llama", vocab_size=257, max_position_embeddings=128)
    model.save_pretrained(tmp_path / "model")
    tokenizer(begins=True).save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("".join(f"line {n} of a text about {n * n}\n" for n in range(3000)))
    words = (
        "model=model data=files data.path=text.txt context=128 ramp=8 steps=40 budget=0.3 held_out=500 out=fit "
        "hardware=gpu"
    )
    printed = finish([sys.executable, "-m", "adaptive_span", "fit", *words.split()], tmp_path).stdout
    assert "cuda, bf16" in printed
    assert load(tmp_path / "fit" / "spans.json").share() == pytest.approx(0.3, abs=0.02)
