"""Windows by hand that keep as much as fitted spans do: what learning a span for each head has to beat."""

from collections.abc import Sequence
from dataclasses import replace

from adaptive_span.hf.spans import FittedSpans, LayerSpans


def one_window(fitted: FittedSpans) -> FittedSpans:
    """Return one window for all heads of all layers but sliding ones, of the same cache."""
    layers = [layer for layer in fitted.layers if layer.window is None]
    window = _window(fitted, layers) if layers else 0.0
    return replace(fitted, layers=[_with_window(layer, window) for layer in fitted.layers])


def window_per_layer(fitted: FittedSpans) -> FittedSpans:
    """Return one window for all heads of each layer but sliding ones, with which the layer keeps as much."""
    return replace(fitted, layers=[_with_window(layer, _window(fitted, [layer])) for layer in fitted.layers])


def _with_window(layer: LayerSpans, window: float) -> LayerSpans:
    return layer if layer.window is not None else replace(layer, spans=[window] * len(layer.spans))


def _window(fitted: FittedSpans, layers: Sequence[LayerSpans]) -> float:
    """Return the window, in tokens, with which each key/value head keeps the mean of what those of some layers keep."""
    kept = [tokens for layer in layers for tokens in layer.kept(fitted.context, fitted.context, fitted.sinks)]
    mean = round(sum(kept) / len(kept))
    return float(mean if mean == fitted.context else max(0, mean - fitted.sinks))
