"""A prepared corpus is what it was when it was made, or is made again; a text is what its name says, or is refused."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from adaptive_span.config.data_schema import DataConfig
from adaptive_span.data import corpus as corpora
from adaptive_span.data.corpus import Corpus, prepare
from tests.conftest import ROOT, SHARED, finish, sentence
from tests.unit.data.test_corpus import refused, write

FILES = ("train.bin", "valid.bin", "test.bin", "vocabulary.json", "manifest.json")
FUZZ = int(os.environ.get("ADAPTIVE_SPAN_FUZZ", 150))  # damaged files of each kind; `.ci/extended` takes 10,000


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    config = write(tmp_path, "one two three\n" * 20, "two new\n", "three one\n")
    config.level = "word"
    return config


def content(corpus: Corpus) -> list[object]:
    """All of a corpus, in memory: what is mapped would be damaged with its file."""
    ids = [corpus.tokens(split).tolist() for split in ("train", "valid", "test")]
    return [corpus.directory, corpus.manifest, corpus.vocabulary, ids]


def flip(path: Path, bit: int = 0) -> None:
    """Change one bit, and nothing else that can be seen of a file."""
    content, before = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 1 << bit
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGES = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0\0"),
    "missing": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_corpus_is_made_again_and_said(damage, name, config, capsys):
    directory, *_ = before = content(prepare(config))
    DAMAGES[damage](directory / name)
    assert content(prepare(config)) == before
    said = capsys.readouterr().out
    assert said.startswith(f"the prepared corpus {directory} is damaged (")
    assert said.endswith("), and is made again\n")
    assert content(prepare(config)) == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["manifest.json", "vocabulary.json"])
def test_no_damaged_description_gets_through(name, config):
    """Bits, cuts, other values, other types: the same corpus comes out, or it is made again; nothing else is raised."""
    directory, *_ = before = content(prepare(config))
    path = directory / name
    good, chance = path.read_bytes(), random.Random(0)
    values = [None, True, -1, 1e999, 2**70, "", "é\x1b[31m", [], {}, [[]] * 3, {"train": None}, "byte"]
    for number in range(FUZZ):
        damaged = bytearray(good)
        kind = number % 4
        if kind == 0:
            for _ in range(chance.randint(1, 4)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        elif kind == 1:
            damaged = damaged[: chance.randrange(len(damaged))]
        elif kind == 2:
            damaged = bytearray(b"[" * chance.choice([1, 900, 100_000]))
        else:
            whole = json.loads(good)
            place = chance.choice(list(whole) if isinstance(whole, dict) else range(len(whole)))
            whole[place] = chance.choice(values)
            damaged = bytearray(json.dumps(whole if chance.random() < 0.9 else chance.choice(values)).encode())
        path.write_bytes(damaged)
        assert content(prepare(config)) == before
        path.write_bytes(good)


OPENING = """
import sys
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.data.corpus import prepare
corpus = prepare(DataConfig(name="files", level="word", path=sys.argv[1], directory=sys.argv[2]))
sys.stderr.write(f"{corpus.fingerprint} {int(corpus.tokens('train').sum())}")
"""


def test_two_processes_that_open_a_damaged_corpus_both_get_it(config):
    before = prepare(config)
    total = int(before.tokens("train").sum())
    flip(before.directory / "train.bin")
    words = [sys.executable, "-c", OPENING, config.path, config.directory]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    out, found = zip(*(process.communicate() for process in both), strict=True)
    assert set(found) == {f"{before.fingerprint} {total}"}
    assert sum("is made again" in text for text in out) == 1


def test_a_corpus_that_cannot_be_written_whole_is_not_used(config, monkeypatch):
    monkeypatch.setattr(corpora, "_sha256", lambda paths: "not the checksum")
    with pytest.raises(corpora.UserError, match=r"damaged while it was written .the checksum of train.bin is wrong"):
        prepare(config)


# What a text is.


def test_a_byte_order_mark_is_no_part_of_a_word(tmp_path):
    config = write(tmp_path, "\ufeffone two\n", "\ufefftwo\n", "one\n")
    config.level = "word"
    assert prepare(config).vocabulary == ["one", "two", "<eos>", "<unk>"]
    assert prepare(config).tokens("valid").tolist() == [1, 2]
    config.level = "byte"
    assert prepare(config).tokens("train")[:3].tolist() == [0xEF, 0xBB, 0xBF]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a café\n".encode("latin1"), "the byte 0xE9 at offset 5 of valid is not UTF-8"),
        (b"x" * 70_001 + b"\xff y\n", "the byte 0xFF at offset 70,001 of valid is not UTF-8"),
        ("café".encode()[:-1], "the byte 0xC3 at offset 3 of valid is not UTF-8"),
        ("\ufeffcafé ".encode() + b"\xe9", "the byte 0xE9 at offset 9 of valid is not UTF-8"),
        ("words\n".encode("utf-16"), "the byte 0xFF at offset 0 of valid begins the mark of UTF-16"),
        ("\ufeffwords\n".encode("utf-16-be"), "the byte 0xFE at offset 0 of valid begins the mark of UTF-16"),
        ("words\n".encode("utf-32"), "the byte 0xFF at offset 0 of valid begins the mark of UTF-32"),
    ],
)
def test_a_text_that_is_not_utf8(content, told, tmp_path):
    config = write(tmp_path, "one two\n", "", "one\n")
    (tmp_path / "valid.txt").write_bytes(content)
    sentence = refused(name="files", level="word", path=str(tmp_path), directory=config.directory)
    assert sentence.startswith(f"{tmp_path / 'valid.txt'}: {told}")
    assert "convert the file, with iconv -f " in sentence
    assert sentence.endswith("or take data.level=byte")


def published(name: str, **changes: object) -> DataConfig:
    return DataConfig(**yaml.safe_load((ROOT / "conf" / "data" / f"{name}.yaml").read_text()) | changes)


def test_what_cannot_be_the_named_text_is_refused(tmp_path):
    texts = {"enwik8": b"<mediawiki>\n" * 100, "text8": b" anarchism originated" * 60}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    split, directory = [800, 100, 100], str(tmp_path / "data")
    for level in ("byte", "word"):
        with pytest.raises(corpora.UserError, match=r"is not text8: it holds the byte 60 .* at offset 0, and text8"):
            prepare(published("text8", file=str(tmp_path / "enwik8"), split=split, directory=directory, level=level))
        with pytest.raises(corpora.UserError, match="is not enwik8, nor a piece of it: it holds no '<'"):
            prepare(published("enwik8", file=str(tmp_path / "text8"), split=split, directory=directory, level=level))
    for name in texts:
        config = published(name, file=str(tmp_path / name), split=split, directory=directory)
        assert prepare(config).warnings(config) == []
    words = [sys.executable, str(ROOT / "launch.py"), "data=text8", "data.file=enwik8", "tracking=none"]
    told = sentence(finish([*words, "data.split=[800,100,100]"], tmp_path, ok=False))
    assert told.startswith("enwik8 is not text8: it holds the byte 60 (b'<') at offset 0")


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not on this machine")
@pytest.mark.parametrize(("name", "file"), [("enwik8", "enwik8_first_4154399"), ("text8", "text8_first_3010294")])
def test_a_real_beginning_is_taken_without_a_word(name, file, tmp_path):
    path, split = SHARED / "data" / f"{file}.xz", [2_700_000, 150_000, 150_000]
    config = published(name, file=str(path), split=split, directory=str(tmp_path))
    assert prepare(config).warnings(config) == []
