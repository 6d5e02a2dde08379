"""The symbols that ids stand for: they decide which text a model's weights can read."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from adaptive_span.config.schema import LEVELS, DataConfig
from adaptive_span.errors import UserError

EOS, UNKNOWN = "<eos>", "<unk>"
NEWLINE, SPACE = 10, 32
SHOWN = 5  # symbols in a sentence


@dataclass(frozen=True)
class Vocabulary:
    """The symbols by id. A byte is written as its number, as a letter (text8), or as <eos>, which is the line end."""

    level: str  # byte or word
    symbols: list[str]
    source: str = field(default="", compare=False)  # the checkpoint that holds it, for error messages

    def pack(self) -> dict[str, str]:
        """Return it as a checkpoint holds it: one text, for no symbol holds a line end."""
        return {"level": self.level, "symbols": "\n".join(self.symbols)}

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

    def pieces(self) -> list[bytes]:
        """Return what each id is in a text, as UTF-8: a byte, or a word without the space before it."""
        if self.level == "byte":
            return [bytes([byte]) for byte in self.byte_values()]
        return [b"\n" if word == EOS else word.encode() for word in self.symbols]

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
        vocabulary = Vocabulary(packed["level"], packed["symbols"].split("\n"), source)
        known = vocabulary.byte_values() if vocabulary.level == "byte" else vocabulary.symbols
    except (AttributeError, KeyError, TypeError, ValueError):
        known = []
    if len(set(known)) != size or len(known) != size or vocabulary.level not in LEVELS:
        raise UserError(f"the checkpoint {source} is damaged: its vocabulary is not one of {size} different symbols")
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
