"""Transformers whose attention heads each learn how far to look (arXiv 1905.07799).

The names below are imported when they are first used, so that `python launch.py --help` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptive_span.config import ModelConfig as ModelConfig
    from adaptive_span.model import AdaptiveSpanAttention as AdaptiveSpanAttention
    from adaptive_span.model import Transformer as Transformer
    from adaptive_span.span import AdaptiveSpan as AdaptiveSpan

_HOME = {"ModelConfig": "config", "AdaptiveSpanAttention": "model", "Transformer": "model", "AdaptiveSpan": "span"}
__all__ = ["AdaptiveSpan", "AdaptiveSpanAttention", "ModelConfig", "Transformer"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'adaptive_span' has no attribute '{name}'")
    return getattr(import_module(f"adaptive_span.{_HOME[name]}"), name)
