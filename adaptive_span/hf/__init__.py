"""How far do the heads of a model that exists need to look?

Spans are fitted to the heads of a causal language model of transformers, whose weights stay as they are; then the model
is used with these spans (`apply`), and with a cache that keeps no more than they need (`SpanCache`). transformers comes
with the extra `hf`. It may import `reporting` and below.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from adaptive_span.errors import UserError

if TYPE_CHECKING:
    from adaptive_span.hf.applying import apply as apply
    from adaptive_span.hf.cache import SpanCache as SpanCache
    from adaptive_span.hf.spans import load as load_spans

__all__ = ["SpanCache", "apply", "load_spans"]

_PLACES = {"SpanCache": ("cache", "SpanCache"), "apply": ("applying", "apply"), "load_spans": ("spans", "load")}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and with it torch and transformers, only now."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    if module != "spans" and find_spec("transformers") is None:
        raise UserError(f"adaptive_span.hf.{name} needs transformers; pip install 'adaptive-span[hf]'")
    return getattr(import_module(f"{__name__}.{module}"), attribute)
