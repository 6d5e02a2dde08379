"""Make the models to measure: sizes from `conf/model/`, and spans like those of published models."""

from typing import Any

import torch
import yaml
from torch import Tensor

from adaptive_span.attention.span import SLACK, AdaptiveSpan
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.places import CONF
from adaptive_span.model.cache import HiddenStateCache
from adaptive_span.model.transformer import Transformer

VOCAB_SIZE = 205  # of enwik8

# Effective spans in tokens, read off the span figure of arXiv 1905.07799's 12-layer model, to a few per cent.
PAPER: list[list[float]] = [
    [32, 32.2, 32.4, 32.5, 32.6, 32.7, 32.8, 33.5],
    [32.2, 32.5, 32.8, 33, 33.2, 33.5, 33.8, 34.2],
    [32.2, 32.5, 32.8, 33, 33.4, 33.8, 34.2, 34.8],
    [32.2, 32.5, 32.8, 33, 33.2, 33.5, 33.8, 34.6],
    [32.2, 32.4, 32.7, 33, 33.2, 33.5, 33.8, 34.2],
    [33, 34, 37, 49, 53, 54, 65, 103],
    [35, 38, 42, 47, 70, 80, 93, 225],
    [33, 45, 48, 51, 82, 120, 160, 1120],
    [51, 78, 82, 110, 138, 140, 560, 3200],
    [32.5, 33.5, 36, 48, 75, 76, 100, 225],
    [38, 92, 101, 105, 130, 180, 255, 3900],
    [62, 63, 125, 128, 195, 300, 1050, 1700],
]


def sizes(name: str) -> ModelConfig:
    """Read the sizes of a model of `conf/model/`."""
    return ModelConfig(**_values(name))


def _values(name: str) -> dict[str, Any]:
    """Return the keys of a file and of the one that it builds on. Benchmarks do without Hydra."""
    values: dict[str, Any] = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())
    bases = [each.removesuffix("@model") for each in values.pop("defaults", []) if isinstance(each, str)]
    return _values(bases[0]) | values["model"] if bases else values


def spans(profile: str, config: ModelConfig, scale: float = 1.0) -> Tensor:
    """Return z of each head, (N, H), in tokens, times `scale`.

    Args:
        profile: paper: as published, each row as often as the model has layers for it, its heads in no order, since
            that is how they learn them. fresh: 0. full: the maximum.
        config: Sizes of the model.
        scale: Factor of the spans.
    """
    layers, heads = config.num_layers, config.num_heads
    if profile == "paper":
        rows = [PAPER[layer * len(PAPER) // layers] for layer in range(layers)]
        chosen = [-(-(head + 1) * len(PAPER[0]) // heads) - 1 for head in range(heads)]  # the longest among them
        random = torch.Generator().manual_seed(0)
        orders = [torch.randperm(heads, generator=random) for _ in rows]
        z = torch.tensor([[row[chosen[head]] for head in order] for row, order in zip(rows, orders, strict=True)]) - 32
    else:
        z = torch.full((layers, heads), {"fresh": 0.0, "full": float(config.max_span)}[profile])
    return (z * scale).clamp(0, config.max_span)


def build(config: ModelConfig, z: Tensor, device: torch.device) -> Transformer:
    """Make a model with these spans, (N, H) in tokens, and otherwise as it starts."""
    torch.manual_seed(0)
    model = Transformer(config, VOCAB_SIZE).to(device)
    modules = [module for module in model.modules() if isinstance(module, AdaptiveSpan)]
    for module, head_spans in zip(modules, z, strict=True):
        module.fraction.data.copy_(head_spans / module.max_span)
    return model


def bounds_in_training(model: Transformer) -> list[list[int]]:
    """Return the bounds of each head's span, in tokens, as a training step uses them."""
    return [list(heads) for heads in model.span_bounds(slack=SLACK)]


def full_cache(model: Transformer, batch_size: int, dtype: torch.dtype) -> HiddenStateCache:
    """Make the hidden states that training finds: per layer (B, L, C), random numbers."""
    device = model.position_embedding.device
    lengths = [model.cache_length(heads) for heads in bounds_in_training(model)]
    size = model.config.hidden_size
    return HiddenStateCache([torch.randn(batch_size, each, size, device=device).to(dtype) for each in lengths])
