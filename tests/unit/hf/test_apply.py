"""Spans go to the model that they were fitted to, and to no other."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from adaptive_span import hf
from adaptive_span.errors import UserError
from adaptive_span.hf import heads
from adaptive_span.hf.fingerprint import fingerprint
from adaptive_span.hf.spans import FittedSpans, LayerSpans
from tests.unit.hf.tiny_models import tiny

CONTEXT = 64


def fitted_to(model: PreTrainedModel) -> FittedSpans:
    layers = [
        LayerSpans(each.index, each.kv_heads, each.head_size, None, [9.0, 20.5, CONTEXT, 12.0])
        for each in heads.find(model)
    ]
    return FittedSpans("tiny", "abc123", type(model).__name__, fingerprint(model), CONTEXT, 8, 4, layers)


def retrained() -> PreTrainedModel:
    model = tiny("llama")
    next(model.parameters()).mul_(1.1)
    return model


def test_a_saved_file_changes_what_heads_see(tmp_path: Path) -> None:
    model: Any = tiny("llama")
    tokens = torch.arange(200)[None] % 97
    whole = model(tokens).logits
    fitted_to(model).save(tmp_path / "spans.json")
    assert hf.load_spans(tmp_path / "spans.json") == fitted_to(model)
    soft = hf.apply(model, tmp_path / "spans.json")(tokens).logits
    hard = hf.apply(model, str(tmp_path / "spans.json"), hard=True)(tokens).logits
    assert torch.allclose(whole[:, :9], hard[:, :9], atol=1e-5)  # as far as the shortest window
    assert not torch.allclose(whole[:, 40:], hard[:, 40:], atol=1e-5)
    assert not torch.allclose(soft[:, 40:], hard[:, 40:], atol=1e-5)
    assert torch.equal(hf.apply(model, tmp_path / "spans.json")(tokens).logits, soft)  # again, though spans are there


def test_the_fingerprint_knows_weights_in_both_precisions() -> None:
    model, rounded = tiny("llama"), tiny("llama")
    rounded.bfloat16()
    assert fingerprint(model) == fingerprint(rounded)
    assert fingerprint(model) != fingerprint(retrained())


def test_refuses_the_spans_of_another_model() -> None:
    fitted = fitted_to(tiny("llama"))
    with pytest.raises(UserError, match=r"revision abc123, fingerprint .* load those weights, or fit spans to these"):
        hf.apply(retrained(), fitted)
    with pytest.raises(UserError, match=r"fitted to tiny \(GPT2LMHeadModel\), and the model is a LlamaForCausalLM"):
        hf.apply(tiny("llama"), dataclasses.replace(fitted, kind="GPT2LMHeadModel"))
    with pytest.raises(UserError, match="with 1 layers, and the model has 2"):
        hf.apply(tiny("llama"), dataclasses.replace(fitted, layers=fitted.layers[:1]))
    one = dataclasses.replace(fitted.layers[1], kv_heads=4)
    with pytest.raises(UserError, match=r"\(1, 4, 4, 8, None\), where the model has \(1, 4, 2, 8, None\)"):
        hf.apply(tiny("llama"), dataclasses.replace(fitted, layers=[fitted.layers[0], one]))


@pytest.mark.parametrize("text", ['{"format": 1, "layers": NaN}', "{}", '{"format": 1, "layers": [{"index": 0}]}'])
def test_refuses_a_file_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "spans.json").write_text(text)
    with pytest.raises(UserError, match=r"spans\.json"):
        hf.apply(tiny("llama"), tmp_path / "spans.json")
