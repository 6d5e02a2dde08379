"""Time a token of a transformers model with its whole cache, and with one that keeps what spans need."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from adaptive_span.benchmark.timing import Workload, time_interleaved
from adaptive_span.benchmark.workloads import Row, Settings
from adaptive_span.hf import heads
from adaptive_span.hf.applying import apply
from adaptive_span.hf.cache import SpanCache, SpanLayer
from adaptive_span.hf.spans import FittedSpans, LayerSpans

RAMP, SINKS, TOKENS = 32, 4, 5  # TOKENS: that a workload predicts
SHARES = (0.1, 0.2, 0.5)
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"


def table(settings: Settings, contexts: Sequence[int], repeats: int) -> dict[str, Row]:
    """Measure a model of random weights with the shape of SmolLM2-135M.

    Args:
        settings: What to measure.
        contexts: Tokens before the one that is predicted.
        repeats: How often.

    Returns:
        Per context and cache: milliseconds per token, MB of keys and values, and these as a percentage of all.
    """
    model = smollm2(settings.device)
    layers = heads.find(model)
    rows: dict[str, Row] = {}
    for context in contexts:
        whole = 2.0 * len(layers) * layers[0].kv_heads * layers[0].head_size * 4 * context * settings.batch_size
        model.set_attn_implementation("sdpa")
        cache: Any = _filled(model, DynamicCache(config=model.config), context, settings)
        rows[f"{context:,}, whole cache"] = _row(model, cache, whole, whole, settings, repeats)
        for share in SHARES:
            fitted = _spans(layers, context, share)
            for hard in (False, True):
                apply(model, fitted, hard)
                cache = _filled(model, SpanCache(model), context, settings)
                name = f"{context:,}, {100 * share:.0f} % in {'windows' if hard else 'soft spans'}"
                rows[name] = _row(model, cache, cache.nbytes, whole, settings, repeats)
    return rows


def smollm2(device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """Return a model of random weights with the shape of SmolLM2-135M, in evaluation mode."""
    torch.manual_seed(0)
    sizes = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1_536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8_192, tie_word_embeddings=True,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(sizes)
    return model.to(device, dtype).eval()


def _row(model: Any, cache: Any, held: float, whole: float, settings: Settings, repeats: int) -> Row:
    token = torch.zeros(settings.batch_size, 1, dtype=torch.long, device=settings.device)

    def predict() -> None:
        with torch.inference_mode():
            for _ in range(TOKENS):
                model(token, **{CACHE: cache})

    workload: Workload = predict
    seconds = time_interleaved(repeats, predict=workload)["predict"]
    return {"ms a token": 1000 * seconds / TOKENS, "cache, MB": held / 1e6, "cache, %": 100 * held / whole}


def _filled(model: Any, cache: Any, context: int, settings: Settings) -> Any:
    """Put random keys and values of a text into a cache: what they are changes no time."""
    config = model.config
    shape = settings.batch_size, config.num_key_value_heads, context, config.hidden_size // config.num_attention_heads
    for layer in cache.layers:
        key = torch.randn(shape, device=settings.device)
        layer.update(key, key.clone())
        if isinstance(layer, SpanLayer):
            for ring in layer.rings:
                ring.store(key, key)
    return cache


def _spans(layers: list[heads.LayerHeads], context: int, share: float) -> FittedSpans:
    """Return spans, most of them short and a few that see all, that keep a share of keys and values."""
    torch.manual_seed(1)
    drawn = torch.rand(len(layers), layers[0].heads).pow(6)
    low, high = 0.0, 1e3
    for _ in range(40):
        middle = (low + high) / 2
        spans = (RAMP + 1 + drawn * context * middle).clamp(max=context).tolist()
        each = [LayerSpans(n, one.kv_heads, one.head_size, None, spans[n]) for n, one in enumerate(layers)]
        fitted = FittedSpans("random", None, "LlamaForCausalLM", "", context, RAMP, SINKS, each)
        low, high = (low, middle) if fitted.share() > share else (middle, high)
    return fitted
