"""A vocabulary as a tokenizer of the Hugging Face libraries: the same ids for the same text, and the text back.

Needs `tokenizers`, which the extra `export` brings.
"""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from adaptive_span.data.subword import SubwordVocabulary
from adaptive_span.data.vocabulary import EOS, UNKNOWN, Vocabulary
from adaptive_span.storage import strict_json
from adaptive_span.storage.writing import atomic_write

PAD = "<pad>"  # has the number after the last symbol: it fills rows, and the model never reads it
# A token that no vocabulary holds: in its place, a symbol that the model does not know is an error.
NONE = "a symbol that the model does not know"
SPACES = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())  # where `str.split` cuts words

# What AutoTokenizer needs besides tokenizer.json.
CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_input_names": ["input_ids", "attention_mask"],
    "padding_side": "left",
    "clean_up_tokenization_spaces": False,
}
PADDED = {"pad_token": PAD, "split_special_tokens": True}  # a text that spells <pad> out is text


def write(vocabulary: Vocabulary, folder: Path) -> None:
    """Write tokenizer.json, of subwords as it is, and what else AutoTokenizer and `generate` read."""
    drawn: dict[str, Any] = {"do_sample": True}
    if isinstance(vocabulary, SubwordVocabulary):
        text, config = vocabulary.tokenizer, CONFIG
    else:
        tokenizer = tokenizer_of(vocabulary)
        text, config = tokenizer.to_str(), CONFIG | PADDED
        drawn |= {"pad_token_id": tokenizer.token_to_id(PAD)}
    with atomic_write(folder / "tokenizer.json") as temporary:
        temporary.write_text(text, encoding="utf-8")
    strict_json.write(config, folder / "tokenizer_config.json")
    strict_json.write(drawn, folder / "generation_config.json")


def tokenizer_of(vocabulary: Vocabulary) -> Tokenizer:
    """Return a tokenizer that numbers text as the vocabulary does."""
    tokenizer = {"byte": _of_bytes, "word": _of_words}[vocabulary.level](vocabulary)
    tokenizer.add_special_tokens([AddedToken(PAD, special=True, normalized=False)])
    return tokenizer


def _of_bytes(vocabulary: Vocabulary) -> Tokenizer:
    """Return a tokenizer whose tokens are bytes, each written as one letter as GPT-2 does."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    shown = {ord(letter) for letter in letters if ord(letter) < 256}  # bytes that are written as they are
    order = [*sorted(shown), *(byte for byte in range(256) if byte not in shown)]
    letter_of = dict(zip(order, letters, strict=True))
    numbers = {letter_of[byte]: number for number, byte in enumerate(vocabulary.byte_values())}
    tokenizer = Tokenizer(models.BPE(numbers, [], unk_token=NONE))  # without merges: a letter is a token
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _of_words(vocabulary: Vocabulary) -> Tokenizer:
    """Return a tokenizer whose tokens are words between white space, and line ends."""
    numbers = {word: number for number, word in enumerate(vocabulary.symbols)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    if EOS in numbers:
        tokenizer.normalizer = normalizers.Replace("\n", f" {EOS} ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"[{SPACES}]"), "removed")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix=" ", cleanup=False),  # a space before each word: none begins with one
            decoders.Replace(Regex(f"^ ?{EOS}$"), "\n"),
            decoders.Fuse(),
            decoders.Replace("\n ", "\n"),
        ]
    )
    return tokenizer
