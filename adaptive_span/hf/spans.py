"""What a fit has found: how far each query head of a model looks, and what keys and values that leaves to keep."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adaptive_span.errors import UserError
from adaptive_span.storage import stored as files
from adaptive_span.storage import strict_json

FORMAT = 1


@dataclass(frozen=True)
class LayerSpans:
    """Hold how far the query heads of a layer look.

    Attributes:
        index: the number of the layer in its model.
        kv_heads: G. Each key/value head serves H / G query heads, one behind another.
        head_size: D.
        window: tokens of a layer that is a sliding one by itself; None else.
        spans: tokens before the present one that each query head sees, with the ramp, (H,). A head whose span is the
            context of the fit sees all there is. In a sliding layer the window stands for each head.
    """

    index: int
    kv_heads: int
    head_size: int
    window: int | None
    spans: Sequence[float]

    def kept(self, length: int, context: int, sinks: int) -> list[int]:
        """Return the tokens that each key/value head keeps of a text of so many, (G,): those that a query head needs.

        Args:
            length: tokens of the text.
            context: the length that spans were fitted on, in tokens.
            sinks: first tokens that are kept beside a span.
        """
        if self.window is not None:
            return [min(length, self.window)] * self.kv_heads
        share = len(self.spans) // self.kv_heads
        longest = [max(self.spans[first : first + share]) for first in range(0, len(self.spans), share)]
        return [length if span >= context else min(length, math.ceil(span) + sinks) for span in longest]


@dataclass(frozen=True)
class FittedSpans:
    """Hold the spans of all layers, and what they were fitted to.

    Attributes:
        model: the name or the folder of the model.
        revision: the commit of its weights, where it has one.
        kind: the class of the model, such as LlamaForCausalLM.
        fingerprint: a checksum of what the model's weights are.
        context: L, the tokens of the text that spans were fitted on.
        ramp: R, the tokens over which a soft mask falls.
        sinks: the first tokens that every later one sees.
        layers: in the order of the model.
        fit: how they were found: data, steps, penalty, losses in nats per token, versions.
    """

    model: str
    revision: str | None
    kind: str
    fingerprint: str
    context: int
    ramp: int
    sinks: int
    layers: list[LayerSpans]
    fit: dict[str, Any] = field(default_factory=dict)

    def share(self, length: int | None = None) -> float:
        """Return the keys and values that are kept of a text of so many tokens, as a fraction of all of them.

        Layers that are sliding ones by themselves, which no fit changes, do not count.

        Args:
            length: tokens of the text; the context of the fit where not given.
        """
        length = length or self.context
        fitted = [layer for layer in self.layers if layer.window is None]
        kept = [tokens for layer in fitted for tokens in layer.kept(length, self.context, self.sinks)]
        return sum(kept) / (length * len(kept))

    def cache_bytes(self, length: int, width: int) -> int:
        """Return the bytes that keys and values of a text of so many tokens take, in numbers of `width` bytes."""
        return sum(
            2 * layer.head_size * width * sum(layer.kept(length, self.context, self.sinks)) for layer in self.layers
        )

    def save(self, path: Path) -> None:
        """Write them as JSON. Raises `UserError` where the disk does not take it."""
        strict_json.write({"format": FORMAT} | asdict(self), path)


def load(path: Path) -> FittedSpans:
    """Return what a spans.json holds.

    Raises:
        UserError: The file cannot be read, or is none.
    """
    stored = files.read_json(path, dict)
    try:
        if stored.pop("format") != FORMAT:
            raise UserError(f"{path} was written by a newer version of adaptive-span; update it")
        layers = [_layer(layer) for layer in stored.pop("layers")]
        fitted = FittedSpans(layers=layers, **stored)
        if not layers or not all(isinstance(n, int) and n > 0 for n in (fitted.context, fitted.ramp)):
            raise ValueError("it has no layers or no context")
        if any(min(layer.spans) < fitted.ramp for layer in layers if layer.window is None):
            raise ValueError("a span is shorter than the ramp")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a spans.json of adaptive-span fit ({type(error).__name__}: {error})") from None
    return fitted


def _layer(stored: dict[str, Any]) -> LayerSpans:
    layer = LayerSpans(**stored)
    fits = len(layer.spans) > 0 and layer.kv_heads > 0 and len(layer.spans) % layer.kv_heads == 0
    if not fits or not all(isinstance(span, int | float) and 0 <= span < math.inf for span in layer.spans):
        raise ValueError(f"the spans of layer {layer.index} are no lengths of {layer.kv_heads} key/value heads")
    return layer
