"""Small tokenizers of the kinds that people use, trained here on a text that every Python has."""

import subprocess
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from adaptive_span.data import subword
from adaptive_span.data.subword import SubwordVocabulary

TEXT = Path(subprocess.__file__).read_text(encoding="utf-8")[:30_000] + "Zoë naïve 日本語 🎉\n" * 20
LOSSLESS = ("byte_level", "byte_fallback")


def byte_level() -> Tokenizer:
    """As GPT-2 has it: parts of characters are tokens, and white space goes with the word behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder, tokenizer.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2 has it: the whole text is one word, and bytes stand for characters that it lacks."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXT[:10_000].splitlines(), trainer)
    return tokenizer


def unigram() -> Tokenizer:
    """As T5 has it: ▁ for spaces, and <unk> for what it lacks."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(TEXT[:10_000].splitlines(), trainer)
    return tokenizer


def wordpiece() -> Tokenizer:
    """As BERT has it: lower case without accents, and [UNK]; its file cuts texts off and fills them up."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[PAD]"], show_progress=False)
    tokenizer.train_from_iterator([TEXT[:10_000]], trainer)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(pad_token="[PAD]", pad_id=1, length=12)
    return tokenizer


KINDS = {each.__name__: each for each in (byte_level, byte_fallback, unigram, wordpiece)}


@cache
def saved(kind: str) -> str:
    """Return the text of its tokenizer.json. Training some of them twice gives two."""
    return KINDS[kind]().to_str()


@cache
def vocabulary(kind: str) -> SubwordVocabulary:
    return subword.from_text(saved(kind))
