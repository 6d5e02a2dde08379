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
from typing import IO

import numpy as np
from tokenizers import Encoding

from adaptive_span.data import source
from adaptive_span.data.numbering import Texts
from adaptive_span.data.subword import SubwordVocabulary
from adaptive_span.data.vocabulary import Vocabulary
from adaptive_span.errors import UserError

PIECE, MARGIN = 1 << 17, 1 << 12  # characters
BATCH = 16  # pieces that are encoded at once, by all cores


@dataclass(frozen=True)
class _Window:
    """A piece of `size` characters, which begins at `start` of a text that goes a margin farther on both sides."""

    text: str
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


def number_subwords(vocabulary: Vocabulary, texts: Texts, directory: Path) -> tuple[dict[str, int], bool]:
    """Write the ids of every split.

    Args:
        vocabulary: That of a tokenizer.
        texts: The name of a split, the name of its text, and its bytes, one after the other.
        directory: Where to write.

    Returns:
        How many bytes of text each split has, and whether the ids give all of it back.

    Raises:
        UserError: A split is empty, is no UTF-8, or holds what the tokenizer cannot encode.
    """
    assert isinstance(vocabulary, SubwordVocabulary)
    dtype, sizes, lossless = np.min_scalar_type(len(vocabulary.symbols) - 1), {}, True
    for split, name, text in texts:
        size = 0
        with open(directory / f"{split}.bin", "wb") as file:
            for ids, part in encoded(vocabulary, _pieces(text, name, split), name):
                file.write(np.array(ids, dtype).tobytes())
                size += len(part.encode())
                # Some tokenizers put a space before a text, and take off the first one of what they decode.
                lossless = lossless and vocabulary.decode(ids).lstrip(" ") == part.lstrip(" ")
        if not (directory / f"{split}.bin").stat().st_size:
            raise UserError(f"the {split} split is empty; give it some text")
        sizes[split] = size
    return sizes, lossless


def _pieces(text: IO[bytes], name: str, split: str) -> Iterator[str]:
    """Yield the text piece by piece. A byte order mark at the start does not count."""
    with TextIOWrapper(text, encoding="utf-8-sig", newline="") as characters:
        try:
            while piece := characters.read(PIECE):
                yield piece
        except UnicodeDecodeError as error:
            offset = text.tell() - len(error.object) + error.start  # of all that was decoded, this came last
            raise source.not_utf8(name, split, offset, error.object[error.start :]) from None


def encoded(
    vocabulary: SubwordVocabulary, pieces: Iterator[str], name: str, margin: int = MARGIN
) -> Iterator[tuple[list[int], str]]:
    """Yield the ids of a text that comes in pieces, and the part of it that they stand for.

    Args:
        vocabulary: The tokenizer.
        pieces: The text.
        name: What to call it in messages.
        margin: Characters around each piece that are encoded with it.
    """
    all_windows = _windows(pieces, margin)
    left: _Window | None = None
    first = begin = 0  # token and character of the left window, from which on it counts
    while windows := list(islice(all_windows, BATCH)):
        encodings = vocabulary.encodings([window.text for window in windows], name)
        for right, after in zip(windows, encodings, strict=True):
            if left is None:
                left, before = right, after
            elif (meeting := _meeting(left, before, right, after, margin)) is not None:
                step, mine, yours = meeting
                yield before.ids[first:mine], left.text[begin : left.end + step]
                left, before, first, begin = right, after, yours, right.start + step
            else:
                left = _Window(left.text[: left.end] + right.text[right.start :], left.start, left.size + right.size)
                [before] = vocabulary.encodings([left.text], name)
    if left is not None:
        yield before.ids[first:], left.text[begin:]


def _windows(pieces: Iterator[str], margin: int) -> Iterator[_Window]:
    """Yield each piece with the text around it."""
    before, piece = "", next(pieces, "")
    while piece:
        after = next(pieces, "")
        yield _Window(before + piece + after[:margin], len(before), len(piece))
        before, piece = (before + piece)[-margin:], after


def _meeting(
    left: _Window, before: Encoding, right: _Window, after: Encoding, margin: int
) -> tuple[int, int, int] | None:
    """Find the first token after the border that both encodings begin alike.

    Returns:
        How many characters behind the border it begins, and its place in each of the two. None where there is none.
    """
    for step in range(min(margin // 2, right.size)):  # so that both have read half a margin beyond it
        mine, yours = _token_at(before, left.end + step), _token_at(after, right.start + step)
        if mine is not None and yours is not None:
            return step, mine, yours
    return None


def _token_at(encoding: Encoding, place: int) -> int | None:
    """Return the first token that begins at a character, None where none does."""
    token = encoding.char_to_token(place)
    characters = None if token is None else encoding.token_to_chars(token)
    return token if characters and characters[0] == place else None
