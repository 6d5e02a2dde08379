"""Cut the spans of a trained model, to see what distance is worth to it."""

import copy
from dataclasses import replace

import torch

from adaptive_span.attention.span import AdaptiveSpan
from adaptive_span.model.transformer import Transformer


@torch.no_grad()
def with_spans_cut(model: Transformer, most: int) -> Transformer:
    """Return a copy of a model whose heads see at most so many tokens; the model itself stays as it is.

    A head that sees farther, min(L, z + R) > `most`, gets z = `most` − R: its mask keeps the ramp that it was trained
    with, which now ends at `most`. Where `most` is below R, only the far end of the ramp is left. A head that sees no
    farther keeps its z to the bit. Heads without learned spans see the last `most` positions, each as before.

    Args:
        model: What to cut.
        most: Tokens, from 1 to the model's maximum span.
    """
    if not model.config.adaptive_span:
        cut = Transformer(replace(model.config, max_span=most), model.vocab_size)
        weights = model.state_dict()
        cut.load_state_dict(weights | {"positions": weights["positions"][:, -most:]})  # the last column is distance 1
        return cut.to(model.position_embedding)
    cut = copy.deepcopy(model)
    learned = [module for module in cut.modules() if isinstance(module, AdaptiveSpan)]
    spans = model.spans()  # (N, H)
    highest = cut.highest_fractions([[most] * spans.size(1)] * spans.size(0))  # (N, H)
    for span, is_longer, limit in zip(learned, spans > most, highest, strict=True):
        span.fraction.copy_(torch.where(is_longer, limit, span.fraction))
    return cut
