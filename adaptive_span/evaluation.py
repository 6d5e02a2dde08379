"""Scoring: exactly, as published, and the quick look that training takes at the validation split.

Nats and tokens are added up in double precision and divided once.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adaptive_span import stream
from adaptive_span.distributed import Process
from adaptive_span.errors import UserError
from adaptive_span.model import Limits, Transformer


@dataclass(frozen=True)
class Score:
    """A sum of negative log-likelihoods, in nats, over so many tokens."""

    nats: float
    tokens: int

    @property
    def bpc(self) -> float:
        """Bits a token."""
        return self.nats / self.tokens / math.log(2)

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nats / self.tokens, 700.0))  # a number even where the model knows nothing


def headline(nats_per_token: float, level: str) -> tuple[str, float]:
    """The figure that people quote: ('bpc', bits a byte), or ('ppl', perplexity) where a token is a word."""
    score = Score(nats_per_token, 1)
    return ("bpc", score.bpc) if level == "byte" else ("ppl", score.perplexity)


@torch.inference_mode()
def validate(
    model: Transformer, rows: np.ndarray, block_size: int, blocks: int, slices: int, limits: Limits, process: Process
) -> Score:
    """The first `blocks` blocks of every row, from an empty cache: always the same tokens, so that values compare.

    `rows` (B, length) are those of all processes; each takes its own in `slices` parts, as training does.
    """
    own = rows[process.share(len(rows)), : blocks * block_size + 1]
    return _total([_score_rows(model, part, block_size, limits, process) for part in np.split(own, slices)], process)


@torch.inference_mode()
def published(
    model: Transformer, tokens: np.ndarray, batch_size: int, block_size: int, process: Process, split: str
) -> Score:
    """As the published numbers were made: rows started cold, whole blocks only, the rest of the text left out."""
    rows = stream.rows(tokens, batch_size, block_size, split)[process.share(batch_size)]
    return _total([_score_rows(model, rows, block_size, model.limits(), process)], process)


@torch.inference_mode()
def exact(
    model: Transformer, tokens: np.ndarray, batch_size: int, block_size: int, process: Process, split: str
) -> Score:
    """Every token but the first, each from all the text before it that the model can see.

    Row r scores an equal part of the split, and starts that far before it that nothing of the missing past can reach
    a scored token: the sum over the layers of the longest effective span. So neither the batch size, nor the block
    size, nor the number of processes changes the result.
    """
    if len(tokens) < 2:
        raise UserError(f"the {split} split holds {len(tokens)} token(s): nothing is left to score after the first one")
    limits = model.limits()
    reach = sum(max(heads) for heads in limits)
    targets = len(tokens) - 1
    # Parts and warm-ups are whole blocks, so that a row that begins with the text begins with a block too.
    blocks = -(-targets // (batch_size * block_size))
    warm_up = -(-reach // block_size)
    part = np.arange(batch_size)[process.share(batch_size)] * blocks * block_size  # (b,) the first token of each part

    model.eval()
    cache, nats, count = model.empty_inference_cache(), [], 0
    for block in range(-warm_up, blocks):
        start = part + block * block_size
        index = start[:, None] + np.arange(block_size)  # (b, M)
        inside = (index >= 0) & (index < targets)
        safe = np.where(inside, index, 0)
        if (start == 0).any():  # what was read before the text began is forgotten
            begun = _tensor(start > 0, process)[:, None, None, None, None]
            cache = [[past * begun for past in layer] for layer in cache]
        read, predicted = (_tensor(tokens[place].astype(np.int64), process) for place in (safe, safe + 1))
        nll, cache = model(read, predicted, cache, limits)
        if block >= 0:
            nats.append(nll.double().where(_tensor(inside, process), 0.0).sum())
            count += int(inside.sum())
    return _total([Score(float(torch.stack(nats).sum()), count)], process)


def _score_rows(model: Transformer, rows: np.ndarray, block_size: int, limits: Limits, process: Process) -> Score:
    """All whole blocks of these rows, from an empty cache."""
    model.eval()
    cache, nats, count = model.empty_inference_cache(), [], 0
    for tokens, targets in stream.passes_once(rows, block_size, process.device):
        nll, cache = model(tokens, targets, cache, limits)
        nats.append(nll.double().sum())
        count += targets.numel()
    return Score(float(torch.stack(nats).sum()), count)


def _tensor(array: np.ndarray, process: Process) -> Tensor:
    """On the device, for which the host does not wait."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(process.device, non_blocking=True) if process.device.type == "cuda" else tensor


def _total(scores: list[Score], process: Process) -> Score:
    """Over these parts and over all processes."""
    nats, tokens = process.sum([sum(score.nats for score in scores), sum(score.tokens for score in scores)])
    return Score(nats, int(tokens))
