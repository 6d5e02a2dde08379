"""The loss of a model: of a text that spans learn from, and of held-out text, all of it and early and late."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel

from adaptive_span.attention.own_types import OwnTypes

PARTS = 4  # of the context, each with a loss of its own
ROWS = 64  # logits that are made fp32 at once


def text_loss(model: PreTrainedModel, tokens: Tensor, first: int = 1) -> Tensor:
    """Return the loss of a text in nats per token, differentiable.

    Args:
        model: a causal language model.
        tokens: (T,).
        first: the first token whose loss counts, with all after it.
    """
    logits = model(tokens[None], use_cache=False).logits.squeeze(0)  # (T, vocabulary)
    loss: Tensor = CrossEntropyFunction.apply(logits, tokens, first)
    return loss


class CrossEntropyFunction(OwnTypes):
    """Compute the mean loss of the next tokens, and its gradient with it.

    The logits of a text are larger than all that a small model keeps beside them. Only a few rows are fp32 at once, and
    only the gradient is kept, in the type of the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,  # (T, vocabulary)
        tokens: Tensor,  # (T,)
        first: int,  # of the tokens that are predicted
    ) -> Tensor:
        """Return the loss in nats per token, ()."""
        grad = torch.empty_like(logits)
        grad[: first - 1], grad[-1] = 0, 0  # no token of these is predicted
        counted, pieces = tokens[first:, None], []
        parts = (logits[first - 1 : -1].split(ROWS), grad[first - 1 : -1].split(ROWS), counted.split(ROWS))
        for rows, grad_rows, ids in zip(*parts, strict=True):
            log = rows.log_softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
            pieces.append(-log.gather(1, ids))
            grad_rows.copy_(log.exp_().scatter_add_(1, ids, log.new_full((), -1.0).expand(ids.shape)) / len(counted))
        ctx.save_for_backward(grad)
        return torch.cat(pieces).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the logits."""
        [grad] = ctx.saved_tensors
        return grad.mul_(grad_loss), None, None  # in place: torch refuses a second pass over what was changed


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
