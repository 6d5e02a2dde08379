"""Describe a prepared text: how often its symbols occur, what that alone is worth, and how its splits begin."""

import numpy as np

from adaptive_span.data.corpus import Corpus
from adaptive_span.data.vocabulary import EOS

CHUNK = 1 << 24  # tokens


def symbol_counts(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return how often each id occurs, (V,).

    Args:
        tokens: Ids, (n,); they may be mapped from a file larger than memory.
        vocab_size: V.
    """
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(tokens), CHUNK):
        counts += np.bincount(tokens[start : start + CHUNK], minlength=vocab_size)
    return counts


def order_zero(counts: np.ndarray, known: np.ndarray) -> float:
    """Return the bits per token of a model that knows nothing but how often each symbol occurs in train.

    It is what any model must beat: the cross-entropy −Σ p(s) log₂ q(s) of a split's shares p under the shares q of
    train, where each symbol of the vocabulary counts once more, so that none is impossible.

    Args:
        counts: Of the split's symbols, (V,).
        known: Of train's, (V,).
    """
    bits = np.log2(known.sum() + len(known)) - np.log2(known + 1)  # (V,)
    return float(counts @ bits / counts.sum())


def beginning(corpus: Corpus, split: str, tokens: int) -> str:
    """Return the first tokens of a split as text, in which bytes that are not UTF-8 are written out."""
    ids = corpus.tokens(split)[:tokens]
    if corpus.level != "byte":
        return corpus.numbering.decode(ids.tolist())
    values = corpus.numbering.byte_values()
    return bytes(values[number] for number in ids).decode("utf-8", errors="backslashreplace")


def symbol_name(corpus: Corpus, number: int) -> str:
    """Return how people read a symbol: characters in quotes, a byte that is none as its number, a word as it is."""
    symbol = corpus.vocabulary[number]
    if corpus.level == "subword":
        return repr(corpus.numbering.decode([number]))
    if corpus.level == "word" or symbol == EOS:
        return symbol
    value = corpus.numbering.byte_values()[number]
    return repr(chr(value)) if value < 128 else f"0x{value:02X}"
