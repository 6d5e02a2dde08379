"""The symbols that ids stand for: they decide which text a model's weights can read."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from adaptive_span.config.data_schema import LEVELS, DataConfig
from adaptive_span.errors import UserError, shown

EOS, UNKNOWN = "<eos>", "<unk>"
NEWLINE, SPACE = 10, 32
SHOWN = 5  # symbols in a sentence


@dataclass(frozen=True)
class Vocabulary:
    """The symbols by id. A byte is written as its number, as a letter (text8), or as <eos>, which is the line end."""

    level: str  # byte, word or subword
    symbols: list[str]
    source: str = field(default="", compare=False)  # the checkpoint that holds it, for error messages

    def pack(self) -> dict[str, str]:
        """Return it as a checkpoint holds it: one text, for no symbol holds a line end."""
        return {"level": self.level, "symbols": "\n".join(self.symbols)}

    @property
    def content(self) -> list[str] | str:
        """Return what a prepared corpus keeps of it, as JSON."""
        return self.symbols

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join([self.level, *self.symbols]).encode()).hexdigest()

    def byte_values(self) -> bytes:
        """Return the byte of every id. Raises `ValueError` for what is not one."""
        return bytes(map(_byte, self.symbols))

    def encode(self, text: bytes, source: str) -> list[int]:
        """Return the ids of a text. Of words, an unknown one is <unk> where the vocabulary has that.

        Args:
            text: Bytes; of words UTF-8.
            source: What to call the text in messages.

        Raises:
            UserError: It holds symbols that the vocabulary lacks, or is no UTF-8 though it should be words.
        """
        if self.level == "byte":
            numbers = {byte: number for number, byte in enumerate(self.byte_values())}
            self.refuse([f"{byte} ({bytes([byte])!r})" for byte in sorted(set(text) - numbers.keys())], source)
            return [numbers[byte] for byte in text]
        try:
            lines = text.decode().split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{source} is no UTF-8 at byte {error.start:,}, and the model reads words") from None
        ids = {word: number for number, word in enumerate(self.symbols)}
        words = [word for line in lines for word in (*line.split(), EOS)][:-1]  # the last line has not ended
        words = words if EOS in ids else [word for word in words if word != EOS]
        if UNKNOWN not in ids:
            self.refuse([repr(word) for word in dict.fromkeys(words) if word not in ids], source)
        return [ids.get(word, ids.get(UNKNOWN, 0)) for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids: words with spaces between them; of bytes, U+FFFD for no whole character."""
        if self.level == "word":
            return " ".join(self.symbols[number] for number in ids)
        values = self.byte_values()
        return bytes(values[number] for number in ids).decode(errors="replace")

    def refuse(self, lacking: list[str], text: str) -> None:
        """Raise `UserError` if the text holds symbols that the vocabulary lacks."""
        if lacking:
            shown = ", ".join(lacking[:SHOWN]) + (", …" if len(lacking) > SHOWN else "")
            raise UserError(
                f"{text} holds {len(lacking):,} {self.level}(s) that the vocabulary of {self.source} "
                f"({len(self.symbols):,} {self.level}s) lacks: {shown}; give a text without them, or other weights"
            )


def unpack(packed: Any, size: int, source: str) -> Vocabulary:
    """Return the vocabulary that `pack` made, as a checkpoint holds it. Raises `UserError` where it is malformed."""
    try:
        if packed["level"] == "subword":
            return _subwords(packed["tokenizer"], size, source)
        vocabulary = Vocabulary(packed["level"], packed["symbols"].split("\n"), source)
        known = vocabulary.byte_values() if vocabulary.level == "byte" else vocabulary.symbols
    except (AttributeError, KeyError, TypeError, ValueError):
        known = []
    if len(set(known)) != size or len(known) != size or vocabulary.level not in LEVELS:
        raise UserError(f"the checkpoint {source} is damaged: its vocabulary is not one of {size} different symbols")
    return vocabulary


def of_content(level: str, content: Any) -> Vocabulary:
    """Return the vocabulary that a prepared corpus keeps: its symbols, or the text of a tokenizer.json."""
    if level != "subword":
        return Vocabulary(level, content)
    from adaptive_span.data import subword  # what an extra brings

    return subword.from_text(content)


def tokenizer_of(config: DataConfig) -> Vocabulary:
    """Return the vocabulary of `data.tokenizer`.

    Raises:
        UserError: There is no such file, it is no tokenizer, or the extra `subword` is missing.
    """
    from adaptive_span.data import subword  # what an extra brings

    if config.tokenizer is None:
        raise UserError("data.level=subword needs data.tokenizer=PATH, a tokenizer.json")
    return subword.read(config.tokenizer)


def _subwords(text: Any, size: int, source: str) -> Vocabulary:
    from adaptive_span.data import subword  # what an extra brings

    try:
        vocabulary = subword.from_text(text, source)
    except ValueError as error:
        raise UserError(f"the checkpoint {source} is damaged: its tokenizer cannot be read ({shown(error)})") from None
    if len(vocabulary.symbols) != size:
        raise UserError(
            f"the checkpoint {source} is damaged: its tokenizer has {len(vocabulary.symbols):,} ids, and its weights "
            f"{size:,}"
        )
    return vocabulary


def byte_symbol(byte: int, config: DataConfig) -> str:
    """Return how a vocabulary writes a byte: as its number, or as a letter where the text consists of given ones.

    So do the published vocabularies of enwik8 and of text8. What could be read as another byte stays a number.
    """
    if byte == NEWLINE and config.ends_in_eos:
        return EOS
    if byte == SPACE and config.symbols:
        return "_"
    is_letter = bool(config.symbols) and chr(byte) != "_" and not chr(byte).isdecimal() and byte != NEWLINE
    return chr(byte) if is_letter else str(byte)


def _byte(symbol: str) -> int:
    named = {EOS: NEWLINE, "_": SPACE}
    if symbol in named:
        return named[symbol]
    return int(symbol) if symbol.isdecimal() else ord(symbol)
