"""`adaptive-span data NAME`: what it counts is what is there, and what it shows steers no terminal."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from adaptive_span.cli import data
from adaptive_span.data import first_look
from adaptive_span.errors import UserError

TEXTS = {
    "train": b"\x1b[2J a text of caf\xe9 and na\xc3\xafve \xe2\x80\xaewords\n" * 20,
    "valid": b"a text\nand more\n" * 9,
    "test": b"words " * 12,
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for split, text in TEXTS.items():
        Path(f"{split}.txt").write_bytes(text)
    return tmp_path


def bits(text):
    """By definition, one byte after the other."""
    train = TEXTS["train"]
    return -sum(math.log2((train.count(byte) + 1) / (len(train) + 256)) for byte in text) / len(text)


def test_counts_and_order_zero_by_hand(monkeypatch):
    monkeypatch.setattr(first_look, "CHUNK", 2)
    train, split = (first_look.symbol_counts(np.array(ids, np.uint8), 3) for ids in ([0, 1, 0, 1, 0], [1, 0, 2]))
    assert train.tolist() == [3, 2, 0]
    assert split.tolist() == [1, 1, 1]
    assert first_look.order_zero(split, train) == pytest.approx(-sum(math.log2(share / 8) for share in (4, 3, 1)) / 3)


def test_a_text_of_bytes_is_shown_and_steers_nothing(folder, capsys):
    data.main(["files", "data.path=."])
    out = capsys.readouterr().out
    for split, text in TEXTS.items():
        [(size, score)] = re.findall(rf"^{split} +([\d,]+) +([\d.]+)$", out, re.MULTILINE)
        assert int(size.replace(",", "")) == len(text)
        assert float(score) == pytest.approx(bits(text), abs=6e-4)
    assert "  \\x1b[2J a text of caf\\xe9 and naïve \\u202ewords\n" in out
    assert "\x1b" not in out
    assert f"'\xa0'\xa0{TEXTS['train'].count(b' ') / len(TEXTS['train']):.1%}" in out
    [lies] = [line.split()[2] for line in out.splitlines() if line.startswith("lies in")]
    assert (folder / lies / "train.bin").read_bytes() == TEXTS["train"]


def test_words_and_other_settings(folder, capsys):
    (folder / "train.txt").write_text("one two two\nthree two\n" * 30, encoding="utf-8")
    (folder / "valid.txt").write_text("two four\n", encoding="utf-8")
    data.main(["files", "data.path=.", "data.level=word"])
    out = capsys.readouterr().out
    assert "order-0 bits per word" in out
    assert "two\xa042.9% · <eos>\xa028.6%" in out
    assert "  one two two <eos> three two <eos>" in out
    assert "  two <unk> <eos>" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "data=nothing must be one of .*stdlib"),
        (["data=stdlib"], "data=stdlib stands where the name of a text belongs"),
        (["files"], "data=files needs data.path=DIR"),
        (["files", "data.path=."], "has no train.txt"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        data.main(words)
