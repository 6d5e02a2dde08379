"""The cache of spans: the text of the whole cache, in the memory that the table says."""

import inspect
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from adaptive_span import hf
from adaptive_span.errors import UserError
from adaptive_span.hf import heads
from adaptive_span.hf.spans import FittedSpans, LayerSpans
from tests.unit.hf.tiny_models import tiny

CONTEXT = 128
NEW = "cache" in inspect.signature(LlamaForCausalLM.forward).parameters
CACHE = "cache" if NEW else "past_key_values"  # as transformers calls what is given to a model
SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 3, "head_dim": 16, "max_position_embeddings": 512,
}  # fmt: skip
GEMMA = {"sliding_window": 24, "query_pre_attn_scalar": 16}
TYPES = ["sliding_attention", "full_attention", "full_attention"]
OWN: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "gemma2": SIZES | GEMMA | {"layer_types": TYPES},  # scores are capped
    "gemma3_text": SIZES | GEMMA | {"layer_types": TYPES},
    "gpt2": {"vocab_size": 97, "n_embd": 96, "n_layer": 3, "n_head": 6, "n_positions": 512},
}
LOOKS = [[40.0, 30, 48, 41, 33.3, 60], [40.0, 30, CONTEXT, 21, 33.3, 60], [40.0] * 6]  # of each layer's heads, tokens


def fitted_to(model: Any) -> FittedSpans:
    layers = [
        LayerSpans(each.index, each.kv_heads, each.head_size, each.window, LOOKS[each.index])
        for each in heads.find(model)
    ]
    return FittedSpans("tiny", None, type(model).__name__, "", CONTEXT, 8, 4, layers)


def made(kind: str, hard: bool) -> tuple[Any, FittedSpans]:
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**OWN[kind] | ids)).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(3 if weight.dim() > 1 else 1)  # so that attention is no mean of everything
    fitted = fitted_to(model)
    return hf.apply(model, fitted, hard), fitted


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("kind", OWN)
def test_generates_what_the_whole_cache_does_from_the_memory_of_the_table(kind: str, hard: bool) -> None:
    model, fitted = made(kind, hard)
    for prompt, new in ((3, 80), (200, 20)):  # shorter than the sinks, and longer than all rings
        tokens = torch.randint(2, 97, (2, prompt), generator=torch.Generator().manual_seed(1))
        caches: list[Any] = [hf.SpanCache(model), DynamicCache(config=model.config)]
        texts, logits, later, held = [], [], [], []
        for cache in caches:
            out = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, do_sample=False,
                **{CACHE: cache}, output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
            texts.append(out.sequences)
            logits.append(torch.stack(out.logits))
            held.append(cache.nbytes if isinstance(cache, hf.SpanCache) else 0)
            later.append(model(tokens[:, :50], **{CACHE: cache}).logits)  # a second turn of a chat
        assert torch.equal(*texts)
        torch.testing.assert_close(*logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(*later, atol=1e-4, rtol=0)
        assert held[0] <= 1.1 * 2 * fitted.cache_bytes(prompt + new - 1, 4)  # of two rows


def test_hides_what_no_head_sees_in_bf16_too() -> None:
    model, _ = made("llama", hard=False)
    model = model.to(torch.bfloat16)
    tokens = torch.randint(2, 97, (1, 150), generator=torch.Generator().manual_seed(1))
    caches: list[Any] = [hf.SpanCache(model), DynamicCache(config=model.config)]
    parts = tokens.split([140] + [1] * 10, 1)
    first, second = (torch.stack([model(part, **{CACHE: cache}).logits[:, -1] for part in parts]) for cache in caches)
    torch.testing.assert_close(first, second, atol=0.05 * float(second.abs().max()), rtol=0)


def test_beams_take_their_rows_along() -> None:
    model, _ = made("llama", hard=False)
    tokens = torch.randint(2, 97, (2, 60), generator=torch.Generator().manual_seed(1))
    texts = [
        model.generate(tokens, max_new_tokens=20, num_beams=3, do_sample=False, **{CACHE: cache})
        for cache in (hf.SpanCache(model), DynamicCache(config=model.config))
    ]
    assert torch.equal(*texts)


def test_refuses_padding_other_attention_and_models_without_spans() -> None:
    model: Any = tiny("llama")
    with pytest.raises(UserError, match=r"no spans; call apply\(model, spans\) first"):
        hf.SpanCache(model)
    model, _ = made("llama", hard=True)
    tokens = torch.full((2, 9), 5)
    padded = torch.ones_like(tokens)
    padded[0, :4] = 0
    with pytest.raises(UserError, match="this batch is padded; generate texts of one length"):
        model.generate(tokens, attention_mask=padded, max_new_tokens=2, **{CACHE: hf.SpanCache(model)})
    with pytest.raises(UserError, match="without an assistant"):
        hf.SpanCache(model).crop(-1)
    model.set_attn_implementation("sdpa")
    with pytest.raises(UserError, match="attention is not adaptive_span"):
        model.generate(tokens, max_new_tokens=3, **{CACHE: hf.SpanCache(model)})
