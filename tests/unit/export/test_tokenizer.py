"""The exported tokenizer numbers text as the vocabulary does, and gives the text back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from adaptive_span.data import subword
from adaptive_span.data.vocabulary import Vocabulary
from adaptive_span.export import tokenizer

BYTES = Vocabulary("byte", [str(byte) for byte in range(256)])
ENWIK8 = Vocabulary("byte", ["60", "<eos>", *(str(byte) for byte in range(255, -1, -1) if byte not in (10, 60))])
TEXT8 = Vocabulary("byte", [*"anrchism", "_", *"ogtedfbulywkvpjzqx", "<eos>"])
WORDS = Vocabulary("word", ["the", "<eos>", "<unk>", "cat", "<pad>", "a", "é"])
KNOWN_WORDS = Vocabulary("word", ["the", "cat"])


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[int, PreTrainedTokenizerBase]:
    def made(number: int, vocabulary: Vocabulary) -> PreTrainedTokenizerBase:
        folder: Path = tmp_path_factory.mktemp(str(number))
        tokenizer.write(vocabulary, folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)

    return {id(each): made(number, each) for number, each in enumerate((BYTES, ENWIK8, TEXT8, WORDS, KNOWN_WORDS))}


@given(text=st.text(max_size=40) | st.text("Ġ Ċ\n\r\x00<pad>é", max_size=20))
def test_every_text_has_the_ids_of_its_bytes_and_comes_back(text, tokenizers):
    for vocabulary in (BYTES, ENWIK8):
        ids = tokenizers[id(vocabulary)](text)["input_ids"]
        assert ids == vocabulary.encode(text.encode(), "text")
        assert tokenizers[id(vocabulary)].decode(ids, skip_special_tokens=True) == text


@given(ids=st.lists(st.integers(0, 255), max_size=20))
def test_bytes_that_are_no_text_are_marked_as_here(ids, tokenizers):
    assert tokenizers[id(BYTES)].decode(ids) == bytes(ids).decode(errors="replace")


@given(text=st.text("abc xyz\n"))
def test_letters_of_text8_have_their_ids(text, tokenizers):
    ids = tokenizers[id(TEXT8)](text)["input_ids"]
    assert ids == TEXT8.encode(text.encode(), "text")
    assert tokenizers[id(TEXT8)].decode(ids, skip_special_tokens=True) == text


SPACES = " \t\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"


@given(
    words=st.lists(
        st.sampled_from(["the", "cat", "dog", "<eos>", "<pad>", "é", "e\u0301", "the<eos>", "\n", "\n\n"])
        | st.text("\n" + SPACES, min_size=1)
        | st.text(max_size=3),
        max_size=12,
    )
)
def test_words_and_line_ends_have_the_ids_of_the_vocabulary(words, tokenizers):
    for text in (" ".join(words), "".join(words)):
        ids = tokenizers[id(WORDS)](text)["input_ids"]
        assert ids == WORDS.encode(text.encode(), "text")
        written = "\n".join(" ".join(line.split()) for line in text.split("\n"))
        known = " ".join(WORDS.symbols[number] for number in ids)
        assert tokenizers[id(WORDS)].decode(ids).split() == known.replace("<eos>", "\n").split()
        if "<unk>" not in known and "<eos>" not in text:
            assert tokenizers[id(WORDS)].decode(ids) == written


@pytest.mark.parametrize("vocabulary", [TEXT8, KNOWN_WORDS], ids=["bytes", "words"])
def test_a_symbol_that_the_model_does_not_know_is_an_error(vocabulary, tokenizers):
    with pytest.raises(Exception, match="vocabulary"):
        tokenizers[id(vocabulary)]("the dog of 1905")


def test_rows_are_filled_on_the_left_with_what_is_no_symbol(tokenizers):
    for vocabulary in (BYTES, TEXT8, WORDS):
        batch = tokenizers[id(vocabulary)](["the", "the cat"], padding=True)
        size = len(vocabulary.symbols)
        short, long = batch["input_ids"]
        assert len(short) == len(long)
        assert sum(batch["attention_mask"][0]) == len(vocabulary.encode(b"the", "text"))
        assert {number < size for number in long} == {True}
        if vocabulary is not WORDS:  # which has a word of that name
            assert short[0] == size


def test_a_tokenizer_of_subwords_travels_as_it_is(tmp_path):
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    trained.train_from_iterator(["the cat and the other cat are in the hat"] * 20, trainer)
    vocabulary = subword.from_text(trained.to_str())
    tokenizer.write(vocabulary, tmp_path)
    assert (tmp_path / "tokenizer.json").read_text(encoding="utf-8") == trained.to_str()
    read = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in ("the cat<|end|>é\n", "", "  otherthe\x00"):
        ids = read(text, add_special_tokens=False)["input_ids"]
        assert ids == vocabulary.encode(text.encode(), "text")
        assert read.decode(ids) == text
