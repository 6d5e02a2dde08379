"""The tokens of a Hugging Face tokenizer. Needs `pip install 'adaptive-span[subword]'`; other levels do not."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from adaptive_span.data.vocabulary import Vocabulary
from adaptive_span.errors import UserError, first_line, shown

try:
    from tokenizers import Encoding, Tokenizer, processors
except ModuleNotFoundError as missing:
    raise UserError(f"there is no {missing.name} here; pip install 'adaptive-span[subword]' brings it") from None

FILE = "tokenizer.json"
LARGEST = 256 << 20  # bytes of such a file: many times the largest known


@dataclass(frozen=True)
class SubwordVocabulary(Vocabulary):
    """The tokens by id, as the tokenizer writes them. An id that it does not use has the empty one."""

    tokenizer: str = field(default="", repr=False)  # the text of tokenizer.json, which decides alone

    def pack(self) -> dict[str, str]:
        """Return it as a checkpoint holds it: the text of tokenizer.json."""
        return {"level": self.level, "tokenizer": self.tokenizer}

    @property
    def content(self) -> str:
        """Return what a prepared corpus keeps of it: the text of tokenizer.json."""
        return self.tokenizer

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.level}\n{self.tokenizer}".encode()).hexdigest()

    @cached_property
    def parsed(self) -> Tokenizer:
        """The tokenizer, which adds nothing to a text and cuts nothing off, whatever its file says."""
        return _parsed(self.tokenizer)

    def encode(self, text: bytes, source: str) -> list[int]:
        """Return the ids of a text, without special tokens around it.

        Args:
            text: UTF-8.
            source: What to call the text in messages.

        Raises:
            UserError: The text is no UTF-8.
        """
        try:
            [encoding] = self.encodings([text.decode()], source)
        except UnicodeDecodeError as error:
            raise UserError(f"{source} is no UTF-8 at byte {error.start:,}, and the model reads subwords") from None
        return encoding.ids

    def encodings(self, texts: Sequence[str], source: str) -> list[Encoding]:
        """Return what the library says of some texts, which all cores work on, without special tokens around them.

        Raises:
            UserError: The tokenizer has no token for something, not even one for what it does not know.
        """
        try:
            return self.parsed.encode_batch(list(texts), add_special_tokens=False)
        except Exception as error:  # of the library's own kind, which is no narrower one
            raise UserError(
                f"{source} cannot be read by the tokenizer ({first_line(error)}); give another text, or a tokenizer "
                f"that knows its characters"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, special tokens included. What is no whole character becomes U+FFFD."""
        text: str = self.parsed.decode(list(ids), skip_special_tokens=False)
        return text

    def byte_values(self) -> bytes:
        """Raise `ValueError`: a token is no byte."""
        raise ValueError("a token of a tokenizer is no byte")


def read(path: str) -> SubwordVocabulary:
    """Return the vocabulary of a tokenizer.json, or of a folder that holds one.

    Raises:
        UserError: There is none, or it is no tokenizer.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    what = f"data.tokenizer={path}"
    try:
        if not file.is_file():
            raise UserError(f"{what} is no {FILE}, nor a folder that holds one; give the path of one")
        if file.stat().st_size > LARGEST:
            raise UserError(f"{what} has {file.stat().st_size:,} bytes, more than any tokenizer; give a {FILE}")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} cannot be read ({first_line(error)}); give a {FILE}") from None
    try:
        return from_text(text)
    except ValueError as error:
        raise UserError(f"{what} is no tokenizer ({shown(error)}); give a {FILE}, as `tokenizers` saves it") from None


def from_text(text: Any, source: str = "") -> SubwordVocabulary:
    """Return the vocabulary of the text of a tokenizer.json.

    Raises:
        ValueError: It is no such text, or most of its ids stand for nothing.
    """
    tokenizer = _parsed(text)
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    size = max(tokens.values(), default=-1) + 1
    if not tokens:
        raise ValueError("it has no tokens")
    if size > 2 * len(tokens):
        raise ValueError(f"its ids go up to {size - 1:,}, but it has only {len(tokens):,} tokens")
    symbols = [""] * size
    for token, number in tokens.items():
        symbols[number] = token
    return SubwordVocabulary("subword", symbols, source, text)


def _parsed(text: Any) -> Tokenizer:
    if not isinstance(text, str) or len(text) > LARGEST:
        raise ValueError("it is no text, or too long")
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # of the library's own kind, which is no narrower one
        raise ValueError(first_line(error)) from None
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # one that does nothing, to offsets either
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
