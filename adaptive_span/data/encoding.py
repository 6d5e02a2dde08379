"""Text → token ids by a Hugging Face tokenizer, in bounded memory, as encoding the whole text at once gives them.

A tokenizer may join characters across any border. So each piece is encoded with a margin of text on both sides. Two
neighbours meet at the first token after the border that both of them begin at the same place; where there is none
within the margin, they are encoded as one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from adaptive_span.data import source
from adaptive_span.data.numbering import Texts
from adaptive_span.data.subword import SubwordVocabulary
from adaptive_span.data.vocabulary import Vocabulary
from adaptive_span.errors import UserError

PIECE, MARGIN = 1 << 17, 1 << 12  # characters
BATCH = 32  # pieces that are encoded at once, by all cores


@dataclass(frozen=True)
class _Window:
    """A piece of `size` characters, which begins at `start` of a text that goes a margin farther on both sides."""

    text: str
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


def number_subwords(vocabulary: Vocabulary, texts: Texts, directory: Path) -> dict[str, int]:
    """Write the ids of every split, and return how many bytes of text each has.

    Args:
        vocabulary: That of a tokenizer.
        texts: The name of a split, the name of its text, and its bytes, one after the other.
        directory: Where to write.

    Raises:
        UserError: A split is empty, or is no UTF-8.
    """
    assert isinstance(vocabulary, SubwordVocabulary)
    dtype, sizes = np.min_scalar_type(len(vocabulary.symbols) - 1), {}
    for split, name, text in texts:
        counted = [0]
        with open(directory / f"{split}.bin", "wb") as file:
            for ids in encoded(vocabulary, _pieces(text, name, split, counted)):
                file.write(np.array(ids, dtype).tobytes())
        if not (directory / f"{split}.bin").stat().st_size:
            raise UserError(f"the {split} split is empty; give it some text")
        sizes[split] = counted[0]
    return sizes


def _pieces(text: IO[bytes], name: str, split: str, counted: list[int]) -> Iterator[str]:
    """Yield the text piece by piece, and add up its bytes. A byte order mark at the start does not count."""
    with TextIOWrapper(text, encoding="utf-8-sig", newline="") as characters:
        try:
            while piece := characters.read(PIECE):
                counted[0] += len(piece.encode())
                yield piece
        except UnicodeDecodeError as error:
            offset = text.tell() - len(error.object) + error.start  # of all that was decoded, this came last
            raise source.not_utf8(name, split, offset, error.object[error.start :]) from None


def encoded(vocabulary: SubwordVocabulary, pieces: Iterator[str], margin: int = MARGIN) -> Iterator[list[int]]:
    """Yield the ids of a text that comes in pieces.

    Args:
        vocabulary: The tokenizer.
        pieces: The text.
        margin: Characters around each piece that are encoded with it.
    """
    tokenizer, all_windows = vocabulary.parsed, _windows(pieces, margin)
    left: _Window | None = None
    while windows := list(islice(all_windows, BATCH)):
        encodings = tokenizer.encode_batch([window.text for window in windows], add_special_tokens=False)
        for right, after in zip(windows, encodings, strict=True):
            if left is None:
                left, before, first = right, after, 0
            elif (meeting := _meeting(left, before, right, after, margin)) is not None:
                yield before.ids[first : meeting[0]]
                left, before, first = right, after, meeting[1]
            else:
                left = _Window(left.text[: left.end] + right.text[right.start :], left.start, left.size + right.size)
                before = tokenizer.encode(left.text, add_special_tokens=False)
    if left is not None:
        yield before.ids[first:]


def _windows(pieces: Iterator[str], margin: int) -> Iterator[_Window]:
    """Yield each piece with the text around it."""
    before, piece = "", next(pieces, "")
    while piece:
        after = next(pieces, "")
        yield _Window(before + piece + after[:margin], len(before), len(piece))
        before, piece = (before + piece)[-margin:], after


def _meeting(left: _Window, before: Any, right: _Window, after: Any, margin: int) -> tuple[int, int] | None:
    """Return the places of the first token after the border that both encodings begin alike; None if there is none."""
    for step in range(min(margin // 2, right.size)):  # so that both have read half a margin beyond it
        mine, yours = before.char_to_token(left.end + step), after.char_to_token(right.start + step)
        if mine is None or yours is None:
            continue
        starts = before.token_to_chars(mine)[0] - left.end, after.token_to_chars(yours)[0] - right.start
        if starts == (step, step):
            return mine, yours
    return None
