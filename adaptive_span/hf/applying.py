"""Give a model the spans that were fitted to it."""

from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedModel

from adaptive_span.errors import UserError
from adaptive_span.hf import heads
from adaptive_span.hf.fingerprint import fingerprint
from adaptive_span.hf.learned import HeadSpans
from adaptive_span.hf.spans import FittedSpans, load

Model = TypeVar("Model", bound=PreTrainedModel)


def apply(model: Model, spans: FittedSpans | Path | str, hard: bool = False) -> Model:
    """Let the heads of a model look as far as spans say, and no farther.

    Args:
        model: a causal language model of transformers, the one that the spans were fitted to. It is changed in place.
        spans: what a fit has found, or the spans.json that it wrote.
        hard: whether heads get windows that reach as far as the soft masks that were fitted, and need the same cache.
            A window weighs far tokens more than its soft mask did, so that the loss changes a little; serving engines
            and kernels know windows alone.

    Returns:
        The model.

    Raises:
        UserError: the file is no spans.json, or these are the spans of another model or revision.
    """
    fitted = spans if isinstance(spans, FittedSpans) else load(Path(spans))
    layers = heads.find(model)
    _check(model, layers, fitted)
    by_index = {layer.index: layer for layer in fitted.layers}

    def make(layer: heads.LayerHeads) -> HeadSpans:
        made = HeadSpans(layer.heads, fitted.context, fitted.ramp, fitted.sinks)
        made.set_(by_index[layer.index].spans)
        if hard:
            made.harden_()
        return made.requires_grad_(False)

    heads.attach(model, layers, make)
    return model


def _check(model: PreTrainedModel, layers: list[heads.LayerHeads], fitted: FittedSpans) -> None:
    """Raise `UserError` unless the spans were fitted to this model."""
    kind, whose = type(model).__name__, f"these spans were fitted to {fitted.model} ({fitted.kind})"
    if kind != fitted.kind:
        raise UserError(f"{whose}, and the model is a {kind}; load the model that they were fitted to")
    here = [(layer.index, layer.heads, layer.kv_heads, layer.head_size, layer.window) for layer in layers]
    there = [(each.index, len(each.spans), each.kv_heads, each.head_size, each.window) for each in fitted.layers]
    if len(here) != len(there):
        raise UserError(f"{whose} with {len(there)} layers, and the model has {len(here)}; load that model")
    for ours, theirs in zip(here, there, strict=True):
        if ours != theirs:
            words = "index, query heads, key/value heads, head size and window"
            raise UserError(
                f"{whose}, which has a layer of {words} {theirs}, where the model has {ours}; load that model"
            )
    if fitted.fingerprint and fitted.fingerprint != (found := fingerprint(model)):
        revision = f"revision {fitted.revision}, " if fitted.revision else ""
        raise UserError(
            f"{whose} of {revision}fingerprint {fitted.fingerprint}, and this model's weights have {found}; load those "
            f"weights, or fit spans to these"
        )
