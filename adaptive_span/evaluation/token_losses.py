"""Keep the loss of each token of a short text: a page colours the text by it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaptive_span.data.corpus import Corpus
from adaptive_span.data.text_stream import TextStream, text_stream
from adaptive_span.data.vocabulary import Vocabulary
from adaptive_span.distributed import Process
from adaptive_span.evaluation.scoring import Reader
from adaptive_span.model.transformer import Transformer
from adaptive_span.reporting.run_directory import TOKEN_LOSSES
from adaptive_span.storage import strict_json

SPLIT, TOKENS = "valid", 2000
LONGEST = 4  # bytes of a character in UTF-8


@torch.inference_mode()
def measure(model: Transformer, corpus: Corpus, block_size: int, step: int, process: Process) -> dict[str, Any]:
    """Score the first tokens of valid one by one, as exact scoring does: from all the text before them.

    Call it in the main process alone.

    Args:
        model: In any mode; it is switched to evaluation.
        corpus: The text.
        block_size: Tokens per step.
        step: Updates that the weights have seen.
        process: The place of this process among all.

    Returns:
        What `token_losses.json` holds: `split`, `protocol`, `step`, `level`, `texts` (of bytes and subwords, whole
        characters), and `nats`, a list for each of them: one number per token, of the very first token none.
    """
    ids = corpus.tokens(SPLIT)[: TOKENS + 1].astype(np.int64)
    text = torch.from_numpy(ids)[None].to(process.device)  # (1, n)
    reader = Reader(model, model.span_bounds(), process, graphs=False)
    blocks = zip(text[:, :-1].split(block_size, 1), text[:, 1:].split(block_size, 1), strict=True)
    nats = [round(loss, 4) for block in blocks for loss in reader.read(*block)[0].tolist()]
    texts, sizes = _texts(ids, corpus.numbering)
    ends = np.cumsum(sizes) - 1  # the first token has no loss
    return {
        "split": SPLIT,
        "protocol": "exact",
        "step": step,
        "level": corpus.level,
        "texts": texts,
        "nats": [nats[max(0, end - size) : end] for end, size in zip(ends.tolist(), sizes, strict=True)],
    }


def write(losses: dict[str, Any], directory: Path) -> None:
    """Write `token_losses.json` to a run's directory.

    Raises:
        UserError: The disk does not take it.
    """
    strict_json.write(losses, directory / TOKEN_LOSSES, indent=None)


def _texts(ids: np.ndarray, numbering: Vocabulary) -> tuple[list[str], list[int]]:
    """Return words, whole characters or the text of subwords, and of how many tokens each consists."""
    if numbering.level == "word":
        return [numbering.symbols[number] for number in ids], [1] * len(ids)
    if numbering.level == "subword":
        return _subwords(ids, text_stream(numbering))
    values = numbering.byte_values()
    characters = list(_characters(bytes(values[number] for number in ids)))
    return [text for text, _ in characters], [size for _, size in characters]


def _subwords(ids: np.ndarray, stream: TextStream) -> tuple[list[str], list[int]]:
    """Return the text of each subword, or of several that make whole characters only together."""
    texts, ends = [], []
    for place, number in enumerate(ids.tolist(), 1):
        if text := stream.add(number):
            texts.append(text)
            ends.append(place)
    if rest := stream.end():
        texts.append(rest)
        ends.append(len(ids))
    return texts, np.diff(ends, prepend=0).tolist()


def _characters(text: bytes) -> Iterator[tuple[str, int]]:
    """Yield the characters of a text and their bytes' number; a byte that belongs to none as an escape."""
    place = 0
    while place < len(text):
        for size in range(1, LONGEST + 1):
            try:
                character = text[place : place + size].decode()
            except UnicodeDecodeError:
                continue
            break
        else:
            character, size = f"\\x{text[place]:02x}", 1
        yield character, size
        place += size
