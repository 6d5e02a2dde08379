"""Find the attention of a transformers model, whatever its class: which modules call it, with how many heads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from adaptive_span.errors import UserError
from adaptive_span.hf import attention
from adaptive_span.hf.learned import HeadSpans

PROBE = "adaptive_span_probe"
TOKENS = 8  # of the text by which a model is asked


@dataclass(frozen=True)
class LayerHeads:
    """Describe the attention of one layer.

    Attributes:
        index: the number of the layer.
        module: the name of the module that calls attention.
        heads: H, the query heads.
        kv_heads: G, the key/value heads.
        head_size: D.
        window: tokens that the layer itself sees, where it is a sliding one: its heads keep that; None else.
    """

    index: int
    module: str
    heads: int
    kv_heads: int
    head_size: int
    window: int | None


def find(model: PreTrainedModel) -> list[LayerHeads]:
    """Return the layers of a model whose attention can be replaced, in their order.

    It runs the model once on a few tokens, and leaves its attention as `adaptive_span`.

    Raises:
        UserError: The model has no attention that can be replaced, or its attention is not causal.
    """
    kind = type(model).__name__
    seen: dict[nn.Module, tuple[int, int, int, int | None]] = {}

    def record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *given: Any, **named: Any) -> Any:
        window = named.get("sliding_window")
        seen[module] = query.size(1), key.size(1), query.size(3), window
        return attention.attend(module, query, key, value, *given, **named)

    attention.register()
    AttentionInterface.register(PROBE, record)
    attention.register_mask(PROBE)
    if model.config.is_encoder_decoder:
        raise UserError(f"{kind} is an encoder with a decoder; spans are fitted to causal language models")
    _set(model, PROBE)
    tokens = torch.arange(2, 2 + TOKENS, device=model.device)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        logits = model(tokens).logits
        tokens[0, -1] = 1
        other = model(tokens).logits
    _set(model, attention.NAME)
    names = {module: name for name, module in model.named_modules()}
    if not seen:
        raise UserError(
            f"{kind} does not call its attention through transformers' AttentionInterface, so that it cannot be "
            f"replaced; take a model whose modeling file does, such as Llama, Qwen3 or Gemma 3"
        )
    if not torch.equal(logits[:, : TOKENS - 1], other[:, : TOKENS - 1]):
        raise UserError(f"{kind} sees later tokens, as an encoder does; spans are fitted to causal language models")
    layers = [LayerHeads(getattr(each, "layer_idx", n), names[each], *seen[each]) for n, each in enumerate(seen)]
    return sorted(layers, key=lambda layer: layer.index)


def attach(
    model: PreTrainedModel, layers: Sequence[LayerHeads], make: Callable[[LayerHeads], HeadSpans | None]
) -> list[HeadSpans]:
    """Give each layer that is not a sliding one the spans of its heads, and return them in the order of the layers."""
    attached = []
    for layer in layers:
        spans = make(layer) if layer.window is None else None
        module = model.get_submodule(layer.module)
        if spans is not None:
            setattr(module, attention.SPANS, spans.to(model.device))
            attached.append(spans)
    return attached


def _set(model: PreTrainedModel, name: str) -> None:
    try:
        model.set_attn_implementation(name)
    except (ValueError, KeyError) as error:
        raise UserError(f"{type(model).__name__} takes no other attention ({' '.join(str(error).split())})") from None
