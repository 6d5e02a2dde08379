"""The loss of a model on held-out text: of all tokens, and of those early and late in the context."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

PARTS = 4  # of the context, each with a loss of its own
ROWS = 256  # logits that are made fp32 at once


@torch.inference_mode()
def measure(model: PreTrainedModel, windows: Iterable[Tensor]) -> dict[str, Any]:
    """Return what a model needs for each token of some windows but their first ones, in nats.

    Args:
        model: in evaluation mode.
        windows: token ids, each (context,).

    Returns:
        `nats_per_token`, the mean; `by_quarter`, the mean of each quarter of the context, from early to late;
        `tokens`, how many were predicted.
    """
    sums, counts = torch.zeros(PARTS, dtype=torch.float64), torch.zeros(PARTS, dtype=torch.int64)
    for window in windows:
        context = len(window)
        quarter = torch.arange(1, context) * PARTS // context
        sums.index_add_(0, quarter, token_losses(model, window).double().cpu())
        counts += quarter.bincount(minlength=PARTS)
    return {
        "nats_per_token": float(sums.sum() / counts.sum()),
        "by_quarter": (sums / counts).tolist(),
        "tokens": int(counts.sum()),
    }


def token_losses(model: PreTrainedModel, window: Tensor) -> Tensor:
    """Return the negative log-likelihood of each token of a window but its first, (context − 1,), in nats."""
    tokens = window.to(model.device)
    logits = model(tokens[None], use_cache=False).logits[0, :-1]
    pieces = zip(logits.split(ROWS), tokens[1:].split(ROWS), strict=True)
    return torch.cat([functional.cross_entropy(rows.float(), ids, reduction="none") for rows, ids in pieces])
