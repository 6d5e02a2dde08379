"""Spans as other software takes them: a window per layer, a table of heads, a mask for FlexAttention."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PretrainedConfig

from adaptive_span.errors import UserError
from adaptive_span.hf.spans import FittedSpans

FULL, SLIDING = "full_attention", "sliding_attention"  # of `layer_types`, as transformers calls them


@dataclass(frozen=True)
class LayerWindows:
    """Hold the windows of a model whose configuration has one for all of its sliding layers.

    Attributes:
        layer_types: of each layer, `full_attention` or `sliding_attention`, as in the configuration.
        sliding_window: tokens that a query of a sliding layer sees, itself included; None where all layers see all.
        share: of keys and values that are kept at the context of the fit, as a fraction.
        share_per_head: the same of a cache that keeps of each key/value head what it needs.
    """

    layer_types: list[str]
    sliding_window: int | None
    share: float
    share_per_head: float


def layer_windows(fitted: FittedSpans, config: PretrainedConfig) -> LayerWindows:
    """Return `layer_types` and `sliding_window` for a model's configuration.

    A layer needs what its longest head needs, and all sliding layers get one window. Of all windows that a layer needs,
    it is the one with the smallest cache; layers that need more see all. A window hides the sinks, so that it loses
    more than the spans did: measure the loss before you serve it.

    Args:
        fitted: the spans of all layers.
        config: of the model.

    Returns:
        The two keys, and what they cost.

    Raises:
        UserError: the configuration knows no window per layer.
    """
    text = config.get_text_config()
    if not hasattr(text, "layer_types") or not hasattr(text, "sliding_window"):
        raise UserError(
            f"{type(config).__name__} has no layer_types and sliding_window, so that no layer of it has a window; "
            f"use SpanCache, or the table of heads"
        )
    length = fitted.context
    needs = [
        layer.window or min(length, math.ceil(max(layer.spans)) + 1)  # the query's own token counts in `sliding_window`
        for layer in fitted.layers
    ]

    def cost(window: int) -> int:
        return sum(
            layer.kv_heads * layer.head_size * (window if need <= window else length)
            for layer, need in zip(fitted.layers, needs, strict=True)
        )

    own = [layer.window for layer in fitted.layers if layer.window]
    window = max(own) if own else min(needs, key=cost)  # sliding layers of the model itself keep theirs
    sliding = [need <= window < length for need in needs]
    full = sum(layer.kv_heads * layer.head_size * length for layer in fitted.layers)
    return LayerWindows(
        [SLIDING if each else FULL for each in sliding],
        window if any(sliding) else None,
        cost(min(window, length)) / full,
        fitted.share(),
    )


def head_table(fitted: FittedSpans) -> dict[str, Any]:
    """Return what each key/value head keeps, as JSON for an engine that gives heads caches of their own.

    Args:
        fitted: the spans of all layers.

    Returns:
        model, revision, fingerprint, sinks, and of each layer `window`, the tokens before the present one that each
        query head sees, (H,), and `kept`, the tokens beside the sinks that each key/value head keeps, (G,). null stands
        for all tokens.
    """
    layers = []
    for layer in fitted.layers:
        windows = [None if span >= fitted.context else math.ceil(span) for span in layer.spans]
        if layer.window is not None:
            windows = [layer.window - 1] * len(layer.spans)
        share = len(windows) // layer.kv_heads
        groups = [windows[first : first + share] for first in range(0, len(windows), share)]
        kept = [None if None in group else max(each for each in group if each is not None) for group in groups]
        sinks = fitted.sinks if layer.window is None else 0
        layers.append({"index": layer.index, "window": windows, "kept": kept, "sinks": sinks})
    return {
        "model": fitted.model,
        "revision": fitted.revision,
        "fingerprint": fitted.fingerprint,
        "context": fitted.context,
        "layers": layers,
    }


def flex_block_mask(fitted: FittedSpans, layer: int, length: int, device: str | torch.device = "cpu") -> BlockMask:
    """Return the mask of a layer for FlexAttention: hard windows and sinks, for whole texts.

    Args:
        fitted: the spans of all layers.
        layer: the number of the layer.
        length: M, the tokens of the texts.
        device: where the mask lies.

    Returns:
        A mask of H heads, M queries and M keys for any batch; blocks that no head sees are skipped by the kernel.

    Raises:
        UserError: there is no such layer.
    """
    found = next((each for each in head_table(fitted)["layers"] if each["index"] == layer), None)
    if found is None:
        numbers = ", ".join(str(each.index) for each in fitted.layers)
        raise UserError(f"layer={layer} has no spans; these have layers {numbers}")
    windows = torch.tensor([length if each is None else each for each in found["window"]], device=device)
    sinks = found["sinks"]

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen: Tensor = (key <= query) & ((query - key <= windows[head]) | (key < sinks))
        return seen

    return create_block_mask(sees, None, len(windows), length, length, device=str(device))
