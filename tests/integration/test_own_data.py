"""A data set is one file of ./conf/data; a folder of WikiText's names and a single text file need none."""

import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from adaptive_span import compose
from adaptive_span.config.data_sets import completed
from adaptive_span.config.identity import changes, default_run_dir
from adaptive_span.config.schema import Config
from adaptive_span.data.corpus import Corpus, prepare
from adaptive_span.errors import UserError
from adaptive_span.storage.stored import from_dict
from tests.conftest import ROOT, SMALL, finish

POEM = "the sea the sea\nand the sand\n" * 400
MINE = """\
name: mine
file: poems.zip
members: [poem.txt]
ids: appearance
line_ends: eos
"""


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")


def prepared(*words: str) -> Corpus:
    config = compose(words)
    return prepare(config.data, config.model.reads_by_frequency)


def text_of(corpus: Corpus, split: str) -> str:
    return " ".join(corpus.vocabulary[number] for number in corpus.tokens(split))


def test_a_data_set_of_one_file_trains_and_is_scored(empty):
    write("conf/data/mine.yaml", MINE)
    with zipfile.ZipFile("poems.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("poems/poem.txt", POEM)
        archive.writestr("poems/read.me", "not this")
    words = [sys.executable, str(ROOT / "launch.py"), "data=mine", "run.dir=run", *SMALL, "train.steps=2"]
    assert "exact evaluation\n" in finish(words, empty).stdout
    finish([sys.executable, str(ROOT / "evaluate.py"), "run=run", "hardware.device=cpu"], empty)
    assert prepared("data=mine").vocabulary == [*map(str, b"the sa"), "<eos>", *map(str, b"nd")]


def test_a_folder_of_wikitext_names_and_one_text_are_read(empty):
    for split, text in (("train", "a b\n"), ("valid", "b c\n"), ("test", "a")):
        write(f"wiki/wiki.{split}.tokens", text)
    wiki = prepared("data=files", "data.path=wiki", "data.level=word")
    assert [text_of(wiki, split) for split in ("train", "valid", "test")] == ["a b <eos>", "b <unk> <eos>", "a <eos>"]
    write("conf/data/wiki.yaml", "name: wiki\npath: wiki\nlevel: word\nline_ends: plain\nids: frequency\n")
    assert text_of(prepared("data=wiki"), "valid") == "b <unk>"

    write("book.txt", POEM)
    book = prepared("data=files", "data.path=book.txt")
    whole, size = POEM.encode(), len(POEM)
    cuts = [size * 18 // 20, size * 18 // 20 + size // 20, size * 18 // 20 + size // 20 * 2]
    assert book.tokens("train").tobytes() == whole[: cuts[0]]
    assert book.tokens("valid").tobytes() == whole[cuts[0] : cuts[1]]
    assert book.tokens("test").tobytes() == whole[cuts[1] : cuts[2]]
    words = prepared("data=files", "data.path=book.txt", "data.level=word")
    parts = [text_of(words, split) for split in ("train", "valid", "test")]
    assert " ".join(parts) + " " == POEM.replace("\n", " <eos> ")
    assert all(part.endswith("<eos>") for part in parts)
    assert len(prepared("data=files", "data.path=book.txt", "data.split=[99,9,9]").tokens("valid")) == 9


def test_a_rule_of_numbering_makes_another_corpus_and_another_run(empty):
    write("book.txt", POEM)
    asked = ("data=files", "data.path=book.txt")
    for rule in ("data.ids=appearance", "data.line_ends=eos", "data.strip=true"):
        assert default_run_dir(compose(asked)) != default_run_dir(compose([*asked, rule]))
        assert prepared(*asked).directory != prepared(*asked, rule).directory


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: mine\n", "data=mine has neither data.file nor data.urls nor data.path; give data.file=PATH"),
        ("name: a/b\nfile: x\n", "data.name=a/b must be a name of at most 50 letters"),
        ("name: mine\nfile: x.zip\nmembers: [a, b]\n", "data.members=['a', 'b'] must be one name, or those of train"),
        ("name: mine\nfile: x\nids: frequency\n", "data.ids=frequency numbers words, but data.level=byte; take data.i"),
        ("name: mine\nfile: x\nlevle: word\n", "conf/data/mine.yaml: there is no key 'data.levle'; did you mean"),
    ],
)
def test_what_is_wrong_with_the_file_is_one_sentence(text, told, empty):
    write("conf/data/mine.yaml", text)
    with pytest.raises(UserError) as refused:
        compose(["data=mine"])
    assert str(refused.value).startswith(told)


LATER = "source members ids line_ends unknown strip vocab_size".split()
DIRECTORIES = {  # as they were named before these keys existed
    "data=enwik8": "runs/enwik8-tiny-ec78ddca",
    "data=text8": "runs/text8-tiny-061387a0",
    "data=wikitext103": "runs/wikitext103-tiny-303a66b4",
    "data=stdlib": "runs/stdlib-tiny-8da86e7c",
}


@pytest.mark.parametrize("data", DIRECTORIES)
def test_a_run_from_before_these_keys_means_what_it_meant(data):
    now = compose([data])
    assert default_run_dir(now) == DIRECTORIES[data]
    before = now.as_dict()
    before["data"] = {key: value for key, value in before["data"].items() if key not in LATER}
    assert changes(before, now) == []
    assert from_dict(completed(before), Config, "it") == now
    changed = yaml.safe_load(yaml.safe_dump(before)) | {"data": before["data"] | {"strip": not now.data.strip}}
    assert changes(changed, now) == [f"data.strip ({not now.data.strip} → {now.data.strip})"]
