"""Bring weights into a model whose heads learn their spans, or may look farther, without a change of its outputs.

L is the maximum span of the checkpoint, L' ≥ L that of the new model, R the new ramp. Outputs are the same if every
head's mask is: what it was up to L, and 0 beyond.

- Fixed spans, L' = L: z = L. The mask is 1 at every distance, whatever R is.
- Learned spans, L' > L: z stays what it is in tokens. That is exact if the ramp ends by itself within L, z + R ≤ L.
- A head that sees all L tokens, L' > L: L would no longer cut its ramp off, and it would see R − 1 tokens more. It is
  exact for R = 1 alone, whose mask falls at once; else it is refused.

The position embedding grows to L' by copies of the vector of its farthest distance. No head sees them yet. To one that
grows, new distances look like the farthest that it knows, until the vectors are trained apart.
"""

from pathlib import Path

import torch
from torch import Tensor

from adaptive_span.checkpoint.files import State
from adaptive_span.checkpoint.stored_model import config_of
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.errors import UserError

SPAN = "attention_blocks.{}.attention.span.fraction"
ROUNDING = 1e-3  # tokens: what fractions of a span lose in single precision


def with_old_reach(state: State, config: ModelConfig, source: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint, as a model with learned spans takes them.

    Args:
        state: The checkpoint.
        config: The model. Where it has no learned spans, or the same or a smaller maximum span than learned ones of the
            checkpoint, the weights are returned as they are.
        source: The checkpoint's file, for messages.

    Raises:
        UserError: The outputs would not be the same.
    """
    tensors: dict[str, Tensor] = state["model"]
    positions, has_spans = tensors.get("positions"), SPAN.format(0) in tensors
    if not config.adaptive_span or positions is None or positions.dim() != 2:
        return tensors
    farther = config.max_span - positions.size(1)
    if farther < 0 or (farther == 0 and has_spans):
        return tensors
    before = config_of(state, source)
    layers = range(before.block_order().count("a"))
    spans = torch.full((len(layers), before.num_heads), float(before.max_span), dtype=torch.float64)  # (N, H)
    if has_spans:
        spans = torch.stack([tensors[SPAN.format(layer)].double() for layer in layers]) * before.max_span
    if farther:
        spans = _with_room(spans, before, config, source)
        farthest = positions[:, :1].expand(-1, farther)  # the first column is the oldest position
        tensors = tensors | {"positions": torch.cat([farthest, positions], 1)}
    fractions = (spans / config.max_span).to(positions.dtype)
    return tensors | {SPAN.format(layer): heads for layer, heads in zip(layers, fractions, strict=True)}


def _with_room(spans: Tensor, before: ModelConfig, config: ModelConfig, source: Path) -> Tensor:
    """Return z of each head, (N, H), with its ramp ending within the old maximum; raise `UserError` if it would not."""
    grown = f"train.init_from={source} cannot grow from {before.max_span} to model.max_span={config.max_span}"
    if before.adaptive_span and before.ramp != config.ramp:
        raise UserError(f"{grown} with another model.ramp={config.ramp}; give model.ramp={before.ramp}")
    most = before.max_span - config.ramp
    cut = int((spans > most + ROUNDING).sum())
    if cut and config.ramp > 1:
        instead = "" if before.adaptive_span else ", or take model.ramp=1"
        raise UserError(
            f"{grown} and compute the same: {cut} of its {spans.numel()} heads see all {before.max_span} tokens, which "
            f"leaves no room for their ramps of {config.ramp}; train with model.max_span={before.max_span} until "
            f"train.span_penalty has made them shorter{instead}"
        )
    return spans.clamp(max=most)
