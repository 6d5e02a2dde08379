"""Any tokenizer of the library `tokenizers` numbers a text: in pieces as in whole, and back into text as it grows."""

import json
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from adaptive_span import compose
from adaptive_span.checkpoint.matching import corpus_for
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.identity import changes, default_run_dir
from adaptive_span.data import corpus as corpora
from adaptive_span.data import first_look, subword
from adaptive_span.data.encoding import encoded
from adaptive_span.data.text_stream import text_stream
from adaptive_span.data.vocabulary import unpack
from adaptive_span.errors import UserError
from tests.unit.data.test_corpus import write
from tests.unit.data.tokenizer_kinds import KINDS, LOSSLESS, TEXT, saved, vocabulary

PARTS = [
    "a",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "é",
    "e\u0301",
    "日本",
    "🎉",
    " the",
    " def ",
    "self.",
    "==",
    "<end>",
]
texts = st.lists(st.sampled_from([*PARTS, *(TEXT[at : at + 9] for at in range(0, 900, 9))]), min_size=1).map("".join)
MARGIN = 48  # characters: more than the longest token, and what stands around it


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts, size=st.integers(MARGIN, 2 * MARGIN))
def test_a_text_in_pieces_has_the_ids_of_the_whole(kind, text, size):
    pieces = (text[at : at + size] for at in range(0, len(text), size))
    ids, parts = zip(*encoded(vocabulary(kind), pieces, "it", MARGIN), strict=True)
    assert [*chain(*ids)] == vocabulary(kind).encode(text.encode(), "it")
    assert "".join(parts) == text


def test_pieces_that_meet_nowhere_within_the_margin_are_encoded_as_one():
    """Of a long run, the place of its start decides how it is cut up."""
    known = vocabulary("byte_level")
    text = "x " + "=" * 301 + " " * 205 + "y"
    ids, _ = zip(*encoded(known, (text[at : at + 50] for at in range(0, len(text), 50)), "it", 7), strict=True)
    assert [*chain(*ids)] == known.encode(text.encode(), "it")


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts, prompt=st.sampled_from(["", "one", "the end "]))
def test_text_grows_as_the_ids_come(kind, text, prompt):
    known = vocabulary(kind)
    stream = text_stream(known)
    assert stream.begin(prompt.encode()) == prompt
    ids = known.encode(text.encode(), "it")
    grown = "".join(map(stream.add, ids)) + stream.end()
    before = known.encode(prompt.encode(), "it")
    assert grown == known.decode([*before, *ids])[len(known.decode(before)) :]
    if kind in LOSSLESS:
        assert known.decode(ids) == text


@given(kind=st.sampled_from(list(KINDS)), ids=st.lists(st.integers(0, 299), max_size=60))
def test_ids_in_any_order_are_some_text(kind, ids):
    stream = text_stream(vocabulary(kind))
    stream.begin(b"")
    grown = "".join(map(stream.add, ids)) + stream.end()
    if kind == "byte_level":
        assert grown == vocabulary(kind).decode(ids)


def prepared(directory: Path, kind: str, *parts: str) -> tuple[DataConfig, corpora.Corpus]:
    config = write(directory, *parts)
    config.level, config.tokenizer = "subword", str(directory / "tokenizer.json")
    Path(config.tokenizer).write_text(saved(kind), encoding="utf-8")
    return config, corpora.prepare(config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_text_has_the_tokenizers_numbers_and_the_bytes_of_its_text(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("adaptive_span.data.encoding.PIECE", 5000)
    parts = "\ufeff" + TEXT[:20_000] + "日本\r\n", TEXT[20_000:25_000], TEXT[-300:]
    config, corpus = prepared(tmp_path, kind, *parts)
    tokenizer = Tokenizer.from_str(saved(kind))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for split, part in zip(("train", "valid", "test"), parts, strict=True):
        text = part.removeprefix("\ufeff")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert corpus.tokens(split).tolist() == ids
        assert corpus.bytes_per_token(split) == len(text.encode()) / len(ids)
    assert corpus.vocab_size == tokenizer.get_vocab_size()
    assert corpus.manifest["dtype"] == "<u2"
    assert first_look.beginning(corpus, "valid", 10) == tokenizer.decode(corpus.tokens("valid")[:10].tolist(), False)
    assert corpora.prepare(config).directory == corpus.directory
    told = [warning[:78] for warning in corpus.warnings(config)]
    lossy = f"the tokenizer does not give data=files data.path={tmp_path} back as it is"[:78]
    assert told == ([] if kind in LOSSLESS else [lossy])

    again = unpack(corpus.numbering.pack(), corpus.vocab_size, "x.pt")
    assert again == corpus.numbering
    state = {"vocabulary": again.pack(), "vocab_size": corpus.vocab_size, "corpus": None}
    Path(config.tokenizer).unlink()
    config.tokenizer = None  # the weights bring theirs
    assert corpus_for(state, "x.pt", config, False, None).directory == corpus.directory


def test_another_tokenizer_than_that_of_the_weights_is_refused(tmp_path):
    config, corpus = prepared(tmp_path, "byte_level", *3 * [TEXT[:500]])
    state = {"vocabulary": corpus.numbering.pack(), "vocab_size": corpus.vocab_size, "corpus": None}
    Path(config.tokenizer).write_text(saved("unigram"), encoding="utf-8")
    assert corpora.prepare(config).directory != corpus.directory
    with pytest.raises(UserError, match=r"x.pt reads by another tokenizer than data.tokenizer=.*; leave that out, and"):
        corpus_for(state, "x.pt", config, False, None)


def test_parts_of_one_text_end_where_a_character_does(tmp_path):
    (tmp_path / "book.txt").write_text("日本🎉" * 100, encoding="utf-8")
    config = DataConfig("files", "subword", path=str(tmp_path / "book.txt"), directory=str(tmp_path / "data"))
    config.split, config.tokenizer = [500, 300, 99], str(tmp_path)
    (tmp_path / "tokenizer.json").write_text(saved("byte_level"), encoding="utf-8")
    corpus = corpora.prepare(config)
    parts = [corpus.numbering.decode(corpus.tokens(split).tolist()) for split in ("train", "valid", "test")]
    assert "".join(parts) == ("日本🎉" * 100).encode()[:899].decode(errors="ignore")
    assert [len(part.encode()) for part in parts] == [500, 300, 96]  # of the last 99, 3 begin a character of 4
    config.split = None  # and there is no line to end at
    corpus = corpora.prepare(config)
    parts = [corpus.numbering.decode(corpus.tokens(split).tolist()) for split in ("train", "valid", "test")]
    assert "".join(parts) == "日本🎉" * 100
    assert len(parts[1].encode()) in range(47, 54)


def test_ids_that_the_file_leaves_out_stand_for_nothing():
    made = json.loads(saved("byte_level"))
    made["model"]["vocab"]["far"] = 450
    known = subword.from_text(json.dumps(made))
    assert known.symbols[398:] == [*vocabulary("byte_level").symbols[398:], *50 * [""], "far"]
    assert known.decode([449, *known.encode(b"it", "it")]) == "it"
    made["model"]["vocab"]["far"] = 10**9
    with pytest.raises(ValueError, match=r"its ids go up to 1,000,000,000, but it has only 40\d tokens"):
        subword.from_text(json.dumps(made))


@pytest.mark.parametrize(
    ("content", "told"),
    {
        None: "is no tokenizer.json, nor a folder that holds one; give the path of one",
        b"a b": "is no tokenizer (expected value at line 1 column 1); give a tokenizer.json, as `tokenizers` saves it",
        b"\xff\xfe": "cannot be read ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)",
        b'{"model": {}}': "is no tokenizer (",
    }.items(),
)
def test_what_is_no_tokenizer_is_one_sentence(content, told, tmp_path):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError) as refused:
        subword.read(str(tmp_path / "tokenizer.json"))
    assert str(refused.value).startswith(f"data.tokenizer={tmp_path / 'tokenizer.json'} {told}")


@pytest.mark.parametrize(
    ("settings", "told"),
    {
        ("data.level=subword",): "data.level=subword needs data.tokenizer=PATH, a tokenizer.json",
        ("data.tokenizer=t.json",): "data.tokenizer=t.json goes with data.level=subword, not with data.level=byte",
        ("data.level=subword", "data.tokenizer=t.json", "model.cutoffs=[8]"): "model.cutoffs=[8] cut a vocabulary of",
    }.items(),
)
def test_settings_that_do_not_go_together_are_one_sentence(settings, told):
    with pytest.raises(UserError) as refused:
        compose(["data=files", "data.path=book.txt", *settings])
    assert str(refused.value).startswith(told)


def test_a_text_in_another_encoding_is_one_sentence(tmp_path):
    config, _ = prepared(tmp_path, "byte_level", "a", "a", "a")
    (tmp_path / "train.txt").write_bytes("caf\xe9".encode("latin1"))
    with pytest.raises(UserError, match="the byte 0xE9 at offset 3 of train is not UTF-8, as which text is read"):
        corpora.prepare(config)


def test_a_text_that_the_tokenizer_has_no_tokens_for_is_one_sentence():
    made = json.loads(saved("unigram"))
    made["model"]["unk_id"] = None
    with pytest.raises(UserError, match=r"the prompt cannot be read by the tokenizer \(.*; give another text, or a to"):
        subword.from_text(json.dumps(made)).encode("日本".encode(), "the prompt")


def test_without_the_extra_one_sentence_says_what_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.delitem(sys.modules, "adaptive_span.data.subword")
    monkeypatch.delattr("adaptive_span.data.subword")
    with pytest.raises(
        UserError, match=r"there is no tokenizers here; pip install 'adaptive-span\[subword\]' brings it"
    ):
        unpack({"level": "subword", "tokenizer": "{}"}, 300, "x.pt")


def test_a_damaged_tokenizer_in_a_checkpoint_is_one_sentence(tmp_path):
    packed = vocabulary("unigram").pack()
    torch.save({"vocabulary": packed}, tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True)["vocabulary"] == packed
    with pytest.raises(UserError, match=r"x.pt is damaged: its tokenizer has 300 ids, and its weights 299"):
        unpack(packed, 299, "x.pt")
    for wrong in (None, 3, "", "{}", packed["tokenizer"][:-9]):
        with pytest.raises(UserError, match=r"x.pt is damaged: its tokenizer cannot be read \("):
            unpack({"level": "subword", "tokenizer": wrong}, 300, "x.pt")
    with pytest.raises(UserError, match=r"x.pt is damaged"):
        unpack({"level": "subword"}, 300, "x.pt")


def test_another_tokenizer_is_another_run_and_a_moved_one_the_same():
    words = ["data=files", "data.path=book.txt", "data.level=subword"]
    one, other = (compose([*words, f"data.tokenizer={path}"]) for path in ("a", "b"))
    assert default_run_dir(one) != default_run_dir(other)
    assert changes(one.as_dict(), other) == []  # where it is given its directory: its numbers are compared there
