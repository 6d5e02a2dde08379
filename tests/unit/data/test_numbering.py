"""Ids of a made text, against the plainest way to number it as the published checkpoints do. test_corpus.py compares
with ids of the original code where its texts are at hand."""

import random
from collections import Counter

import pytest

from adaptive_span.data.corpus import prepare
from tests.unit.data.test_corpus import write
from tests.unit.data.test_corpus_cache import published

MADE = random.Random(0)
WORDS = ["".join(MADE.choices("abcdefgh", k=MADE.randint(1, 4))) for _ in range(800)]
LINES = [" ".join(MADE.choices(WORDS, k=MADE.randrange(9))) for _ in range(900)]  # some of them blank


def in_lines(start, end):
    return "".join(f"{line}\n" for line in LINES[start:end])


def check(corpus, splits, unknown=None, by_frequency=False):
    """The ids are places in the list of train's tokens as they appear, or as they are frequent, of equals the latest
    first; `unknown` comes last, and its id stands for what train lacks."""
    symbols = list(dict.fromkeys(splits[0]))
    if by_frequency:
        counts = Counter(splits[0])
        symbols = sorted(symbols, key=lambda symbol: (counts[symbol], symbols.index(symbol)), reverse=True)
    symbols += [unknown] if unknown else []
    assert corpus.vocabulary == symbols
    for split, tokens in zip(("train", "valid", "test"), splits, strict=True):
        expected = [symbols.index(token if token in symbols else unknown) for token in tokens]
        assert corpus.tokens(split).tolist() == expected
    assert corpus.manifest["dtype"] == ("|u1" if len(symbols) <= 256 else "<u2")


@pytest.mark.parametrize("name", ["enwik8", "text8"])
def test_bytes_are_numbered_as_published(name, tmp_path):
    text = f"<page>\n{in_lines(0, 900)}" if name == "enwik8" else " ".join(WORDS * 3)
    (tmp_path / "text").write_text(text, encoding="utf-8")
    split = [len(text) - 900, 500, 400]
    config = published(name, file=str(tmp_path / "text"), split=split, directory=str(tmp_path / "data"))
    parts = text[: split[0]], text[split[0] : -400], text[-400:]
    names = {" ": "_", "\n": "<eos>"} if name == "text8" else {"\n": "<eos>"}
    parts = [part.strip(" ") if name == "text8" else part for part in parts]
    parts = [part if part.endswith("\n") else f"{part}\n" for part in parts]
    corpus = prepare(config)
    shown = {
        symbol: names.get(symbol, symbol if name == "text8" else str(ord(symbol))) for symbol in set(text) | {"\n"}
    }
    check(corpus, [[shown[symbol] for symbol in part] for part in parts])


@pytest.mark.parametrize("by_frequency", [False, True])
def test_words_are_numbered_as_published(by_frequency, tmp_path):
    parts = in_lines(0, 700), in_lines(700, 800), in_lines(800, 900)
    config = write(tmp_path, *parts)
    config.level = "word"
    splits = [[word for line in part.splitlines() for word in [*line.split(), "<eos>"]] for part in parts]
    assert len(set(splits[0])) > 256
    assert set(splits[2]) - set(splits[0])
    check(prepare(config, by_frequency=by_frequency), splits, "<unk>", by_frequency)
