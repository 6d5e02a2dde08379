"""Score a text: exactly, as the published numbers were made, and quickly while training.

Nats and tokens are added up in double precision and divided once.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adaptive_span.attention.span_bounds import SpanBounds
from adaptive_span.data import stream
from adaptive_span.data.corpus import Corpus
from adaptive_span.distributed import Process
from adaptive_span.errors import UserError
from adaptive_span.hardware.step_graph import StepGraph
from adaptive_span.model.transformer import Transformer


@dataclass(frozen=True)
class Score:
    """A sum of negative log-likelihoods over a number of tokens."""

    nats: float
    tokens: int

    @property
    def bpc(self) -> float:
        """Bits per token."""
        return self.nats / self.tokens / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(nats per token), cut to what a float holds."""
        return math.exp(min(self.nats / self.tokens, 700.0))  # a number even where the model knows nothing


def quoted(nats_per_token: float, corpus: Corpus, split: str) -> dict[str, float]:
    """Return a loss in the units that people quote, by their names, the one that scores are compared by first.

    Args:
        nats_per_token: Mean negative log-likelihood.
        corpus: The text.
        split: Which part of it was scored.

    Returns:
        `bpc` of bytes; `ppl`, the perplexity, of words; of subwords `bits_per_byte` and `nats_per_token`. The bytes of
        a token are the mean over the whole split: a token that was not scored counts as if it cost the mean.
    """
    score = Score(nats_per_token, 1)
    if corpus.level == "subword":
        return {"bits_per_byte": score.bpc / corpus.bytes_per_token(split), "nats_per_token": nats_per_token}
    return {"bpc": score.bpc} if corpus.level == "byte" else {"ppl": score.perplexity}


class Reader:
    """Read a text block by block, with a cache; with `graphs` by a CUDA graph of the block before."""

    def __init__(self, model: Transformer, span_bounds: SpanBounds, process: Process, graphs: bool):
        self.model, self.span_bounds = model.eval(), span_bounds
        self.cache = model.empty_inference_cache()
        self.graph = StepGraph() if graphs else None
        self._block = torch.zeros(0)  # (2, B, M), of tokens and targets, where a graph looks for it

    def read(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the nats of every target, (B, M). The next call overwrites them.

        Args:
            tokens: Ids of the block (B, M).
            targets: Ids of the tokens that follow each (B, M).
        """
        if self.graph is None:
            return self._next(tokens, targets)
        block = torch.stack([tokens, targets])
        if self._block.shape != block.shape:
            self._block = torch.empty_like(block)
        self._block.copy_(block)

        def in_place() -> Tensor:
            nll: Tensor
            nll, cache = self.model(*self._block, self.cache, self.span_bounds)
            self.cache.copy_(cache)
            return nll

        return self.graph.run((self.cache.sizes(), block.shape), lambda: self._next(tokens, targets), in_place)

    def _next(self, tokens: Tensor, targets: Tensor) -> Tensor:
        nll: Tensor
        nll, self.cache = self.model(tokens, targets, self.cache, self.span_bounds)
        return nll

    def forget(self, rows: Tensor) -> None:
        """Clear the cache of some rows.

        Args:
            rows: Which ones, (B,) bool.
        """
        kept = ~rows[:, None, None, None, None]
        for past in self.cache.tensors():
            past.mul_(kept)


@torch.inference_mode()
def validate(
    model: Transformer,
    rows: np.ndarray,
    block_size: int,
    blocks: int,
    slices: int,
    span_bounds: SpanBounds,
    process: Process,
    graphs: bool = False,
) -> Score:
    """Score the first blocks of every row, from an empty cache: always the same tokens, so that values compare.

    Args:
        model: In any mode; it is switched to evaluation.
        rows: Token ids (B, length) of all processes; each takes its share.
        block_size: Tokens of each row per step.
        blocks: How many blocks of each row to score.
        slices: Parts of a process's rows, one after the other, as in training.
        span_bounds: Upper bounds of the spans, in tokens.
        process: The place of this process among all.
        graphs: Whether steps are recorded as CUDA graphs.

    Returns:
        Nats and tokens over all processes.
    """
    process_rows = rows[process.share(len(rows)), : blocks * block_size + 1]
    parts = [
        _score_rows(part, block_size, Reader(model, span_bounds, process, graphs), process)
        for part in np.split(process_rows, slices)
    ]
    return _total(parts, process)


@torch.inference_mode()
def score_as_published(
    model: Transformer,
    tokens: np.ndarray,
    batch_size: int,
    block_size: int,
    process: Process,
    split: str,
    graphs: bool = False,
) -> Score:
    """Score a split as the published numbers were made.

    Every row starts with an empty cache, only whole blocks count, and the rest of the text is left out.

    Args:
        model: In any mode; it is switched to evaluation.
        tokens: Token ids of the split (n,).
        batch_size: Rows over all processes.
        block_size: Tokens of each row per step.
        process: The place of this process among all.
        split: Name of the split, for messages.
        graphs: Whether steps are recorded as CUDA graphs.

    Returns:
        Nats and tokens over all processes.

    Source: the protocol of arXiv 1905.07799's reported numbers.
    """
    rows = stream.rows(tokens, batch_size, block_size, split)[process.share(batch_size)]
    reader = Reader(model, model.span_bounds(), process, graphs)
    return _total([_score_rows(rows, block_size, reader, process)], process)


@torch.inference_mode()
def score_exactly(
    model: Transformer,
    tokens: np.ndarray,
    batch_size: int,
    block_size: int,
    process: Process,
    split: str,
    graphs: bool = False,
) -> Score:
    """Score every token but the first, each from all the text before it that the model can see.

    Row r scores an equal part of the split. It starts so far before that part that nothing of the missing past can
    reach a scored token: by the sum over the layers of the longest effective span. So neither the batch size, nor the
    block size, nor the number of processes changes the result.

    Args:
        model: In any mode; it is switched to evaluation.
        tokens: Token ids of the split (n,).
        batch_size: Rows over all processes.
        block_size: Tokens of each row per step.
        process: The place of this process among all.
        split: Name of the split, for messages.
        graphs: Whether steps are recorded as CUDA graphs.

    Returns:
        Nats and tokens over all processes.

    Raises:
        UserError: The split holds fewer than two tokens.
    """
    if len(tokens) < 2:
        raise UserError(f"the {split} split holds {len(tokens)} token(s): nothing is left to score after the first one")
    span_bounds = model.span_bounds()
    reach = sum(max(heads) for heads in span_bounds)
    targets = len(tokens) - 1
    # Parts and warm-ups are whole blocks, so that a row that begins with the text begins with a block too.
    blocks = -(-targets // (batch_size * block_size))
    warm_up = -(-reach // block_size)
    part = np.arange(batch_size)[process.share(batch_size)] * blocks * block_size  # (b,) the first token of each part

    reader, nats, count = Reader(model, span_bounds, process, graphs), [], 0
    for block in range(-warm_up, blocks):
        start = part + block * block_size
        index = start[:, None] + np.arange(block_size)  # (b, M)
        inside = (index >= 0) & (index < targets)
        safe = np.where(inside, index, 0)
        if (start == 0).any():  # what was read before the text began
            reader.forget(_tensor(start == 0, process))
        read, predicted = (_tensor(tokens[place].astype(np.int64), process) for place in (safe, safe + 1))
        nll = reader.read(read, predicted)
        if block >= 0:
            nats.append(_exact(nll.where(_tensor(inside, process), 0.0)).sum())
            count += int(inside.sum())
    return _total([Score(float(torch.stack(nats).sum()), count)], process)


def _score_rows(rows: np.ndarray, block_size: int, reader: Reader, process: Process) -> Score:
    """Score all whole blocks of these rows, with a reader that has read nothing yet."""
    nats, count = [], 0
    for tokens, targets in stream.passes_once(rows, block_size, process.device):
        nats.append(_exact(reader.read(tokens, targets)).sum())
        count += targets.numel()
    return Score(float(torch.stack(nats).sum()), count)


def _exact(nll: Tensor) -> Tensor:
    """Return losses in double precision: on the host where the device, like a GPU of Apple's, has none."""
    return (nll.cpu() if nll.device.type == "mps" else nll).double()


def _tensor(array: np.ndarray, process: Process) -> Tensor:
    """Copy an array to the device; the host does not wait for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(process.device, non_blocking=True) if process.device.type == "cuda" else tensor


def _total(scores: list[Score], process: Process) -> Score:
    """Add up scores over these parts and over all processes."""
    nats, tokens = process.sum([sum(score.nats for score in scores), sum(score.tokens for score in scores)])
    return Score(nats, int(tokens))
