"""Text → token ids, numbered as the published checkpoints number them, or by the vocabulary of given weights."""

from array import array
from collections.abc import Callable, Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import IO

import numpy as np

from adaptive_span.config.data_schema import DataConfig
from adaptive_span.data import source
from adaptive_span.data.vocabulary import EOS, NEWLINE, UNKNOWN, Vocabulary, byte_symbol
from adaptive_span.errors import UserError

CHUNK = 1 << 20  # tokens
ALL_BYTES = bytes(range(256))
Texts = Iterable[tuple[str, str, IO[bytes]]]  # the name of a split, the name of its text, and its bytes


def number_bytes(
    config: DataConfig, vocabulary: Vocabulary | None, texts: Texts, directory: Path
) -> tuple[list[str], int]:
    """Write the ids of every split. Returns the symbols by id, and 0: there is no <unk> among bytes.

    All 256 bytes have an id, the byte itself, unless `data.ids` asks for those of first appearance in train.
    """
    known = vocabulary.byte_values() if vocabulary else ALL_BYTES
    lacking: set[int] = set()
    for split, _, stream in texts:
        text = stream.read()
        if config.strip:
            text = text.strip(b" ")
        if not text:
            raise UserError(f"the {split} split is empty; give it some text")
        ending = b"\n" if config.ends_in_eos and text[-1] != NEWLINE else b""
        if config.ids == "appearance" and not vocabulary and split == "train":
            known = _in_order_of_appearance(text, config.ends_in_eos)
        unknown = b"" if len(known) == 256 else text.translate(None, known) + ending.translate(None, known)
        lacking |= set(unknown)
        if unknown and not vocabulary:
            raise UserError(
                f"the {split} split holds the byte {unknown[0]} ({unknown[:1]!r}) at offset "
                f"{text.find(unknown[:1]):,}, which train does not; take a longer train split"
            )
        ids = None if known == ALL_BYTES else bytes.maketrans(known, bytes(range(len(known))))
        with open(directory / f"{split}.bin", "wb") as file:
            file.write(text.translate(ids) if ids else text)
            file.write(ending.translate(ids))
    if vocabulary is None:
        return [byte_symbol(byte, config) for byte in known], 0
    vocabulary.refuse([f"{byte} ({bytes([byte])!r})" for byte in sorted(lacking)], source.described(config))
    return vocabulary.symbols, 0


def _in_order_of_appearance(text: bytes, with_newline: bool) -> bytes:
    """Return the different bytes of a text, and at last the line end if it is asked for and the text has none."""
    first = {byte: text.find(bytes([byte])) for byte in range(256)}  # memchr: faster than counting
    symbols = sorted((byte for byte in first if first[byte] >= 0), key=first.__getitem__)
    return bytes([*symbols, NEWLINE] if with_newline and NEWLINE not in symbols else symbols)


def number_words(
    config: DataConfig, by_frequency: bool, vocabulary: Vocabulary | None, texts: Texts, directory: Path
) -> tuple[list[str], int]:
    """Write the ids of every split. Returns the words by id, and how many others of a given vocabulary are <unk> now.

    Ids in order of first appearance in train, or by falling count. Every line, a blank one too, ends in <eos>, unless
    `data.line_ends` leaves it out.
    """
    numbers = {word: number for number, word in enumerate(vocabulary.symbols)} if vocabulary else {}
    rank = np.arange(len(numbers))
    lacking: dict[str, None] = {}  # in order of appearance

    def number_new(word: str, place: int) -> int:
        if split == "train" and not vocabulary:
            return numbers.setdefault(word, len(numbers))
        if vocabulary or config.unknown == "unk":
            lacking[word] = None
            return numbers.get(UNKNOWN, 0)
        raise UserError(
            f"the {split} split holds the word {word!r} at token {place:,}, which train does not; take "
            f"data.unknown=unk, which knows {UNKNOWN}"
        )

    for split, name, text in texts:
        first = directory / f"{split}.first"
        if not _write_ids(_words(text, name, split, config.ends_in_eos), numbers, number_new, first):
            raise UserError(f"the {split} split is empty; give it some text")
        if split == "train" and not vocabulary:
            if config.unknown == "unk":
                numbers.setdefault(UNKNOWN, len(numbers))
            rank = np.arange(len(numbers))
            if (
                by_frequency or config.ids == "frequency"
            ):  # of equally frequent words the one that appeared last comes first
                rank[np.lexsort((-rank, -_counts(first, len(numbers))))] = np.arange(len(numbers))
    if vocabulary and UNKNOWN not in numbers:
        vocabulary.refuse([repr(word) for word in lacking], source.described(config))
    _write_ranks(rank, directory)
    words = list(numbers)
    return [words[number] for number in np.argsort(rank)], len(lacking) if vocabulary else 0


def _words(text: IO[bytes], name: str, split: str, ends_in_eos: bool) -> Iterator[list[str]]:
    """Yield the words of each line, and <eos> where it is asked for. A byte order mark at the start does not count."""
    with TextIOWrapper(text, encoding="utf-8-sig") as lines:
        try:
            for line in lines:
                yield [*line.split(), EOS] if ends_in_eos else line.split()
        except UnicodeDecodeError as error:
            offset = text.tell() - len(error.object) + error.start  # of all that was decoded, this came last
            raise source.not_utf8(name, split, offset, error.object[error.start :]) from None


def _write_ids(
    lines: Iterable[list[str]], numbers: dict[str, int], number_new: Callable[[str, int], int], path: Path
) -> int:
    """Write the ids of words as int32, and return how many. `number_new(word, place)` numbers those that have none."""
    ids, written = array("i"), 0
    with open(path, "wb") as file:
        for words in lines:
            for word in words:
                number = numbers.get(word)
                if number is None:
                    number = number_new(word, written + len(ids))
                ids.append(number)
            if len(ids) >= CHUNK:
                ids.tofile(file)
                written, ids = written + len(ids), array("i")
        ids.tofile(file)
    return written + len(ids)


def _counts(path: Path, size: int) -> np.ndarray:
    """Return how often each id occurs, (size,)."""
    ids, counts = np.memmap(path, dtype=np.int32, mode="r"), np.zeros(size, np.int64)
    for start in range(0, len(ids), CHUNK):
        counts += np.bincount(ids[start : start + CHUNK], minlength=size)
    return counts


def _write_ranks(rank: np.ndarray, directory: Path) -> None:
    """Turn the ids of first appearance into those of `rank`, in the smallest type that holds them."""
    dtype = np.min_scalar_type(len(rank) - 1)
    for split in source.SPLITS:
        first = directory / f"{split}.first"
        ids = np.memmap(first, dtype=np.int32, mode="r")
        with open(directory / f"{split}.bin", "wb") as file:
            for start in range(0, len(ids), CHUNK):
                file.write(rank[ids[start : start + CHUNK]].astype(dtype).tobytes())
        first.unlink()
