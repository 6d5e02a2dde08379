"""Transformers whose attention heads each learn how far to look (arXiv 1905.07799).

The names below are imported when they are first used, so that `python launch.py --help` need not wait for torch, nor a
model for Hydra, which `compose` alone needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adaptive_span.version import __version__ as __version__

if TYPE_CHECKING:
    from adaptive_span.attention.functional import adaptive_attention as adaptive_attention
    from adaptive_span.attention.layer import AdaptiveAttention as AdaptiveAttention
    from adaptive_span.attention.layer import AttentionCache as AttentionCache
    from adaptive_span.attention.span import AdaptiveSpan as AdaptiveSpan
    from adaptive_span.checkpoint.loading import load_model as load_model
    from adaptive_span.config.model_schema import ModelConfig as ModelConfig
    from adaptive_span.config.schema import Config as Config
    from adaptive_span.launch.composition import compose as compose
    from adaptive_span.launch.running import train as train
    from adaptive_span.model.transformer import Transformer as Transformer

_MODULES = {
    "AdaptiveAttention": "attention.layer",
    "AdaptiveSpan": "attention.span",
    "AttentionCache": "attention.layer",
    "Config": "config.schema",
    "ModelConfig": "config.schema",
    "Transformer": "model.transformer",
    "adaptive_attention": "attention.functional",
    "compose": "launch.composition",
    "load_model": "checkpoint.loading",
    "train": "launch.running",
}
__all__ = [
    "AdaptiveAttention",
    "AdaptiveSpan",
    "AttentionCache",
    "Config",
    "ModelConfig",
    "Transformer",
    "adaptive_attention",
    "compose",
    "load_model",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'adaptive_span' has no attribute '{name}'")
    return getattr(import_module(f"adaptive_span.{_MODULES[name]}"), name)
