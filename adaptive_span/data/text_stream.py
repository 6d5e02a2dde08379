"""Token ids → text as it grows: each stream takes one id after the other and gives the text that is certain by then."""

import codecs
from typing import Protocol

from adaptive_span.data.vocabulary import EOS, Vocabulary

BROKEN = "\ufffd"  # in place of bytes that are no whole character
MOST = 16  # subwords that are held back for one: bytes that are no text would be for ever


class TextStream(Protocol):
    """One text that grows behind a prompt."""

    def begin(self, prompt: bytes) -> str:
        """Take what stands before the first token, and return it as text."""

    def add(self, number: int) -> str:
        """Take the next id, and return the text that is new."""

    def end(self) -> str:
        """Return what was held back as an incomplete character."""


def text_stream(vocabulary: Vocabulary) -> TextStream:
    """Return a stream of the vocabulary's kind."""
    if vocabulary.level == "subword":
        return _Subwords(vocabulary)
    return _Bytes(vocabulary.byte_values()) if vocabulary.level == "byte" else _Words(vocabulary.symbols)


class _Bytes:
    """Bytes, which may be parts of characters."""

    def __init__(self, values: bytes):
        self.values = values
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def begin(self, prompt: bytes) -> str:
        return self.decoder.decode(prompt)

    def add(self, number: int) -> str:
        return self.decoder.decode(self.values[number : number + 1])

    def end(self) -> str:
        return self.decoder.decode(b"", True)


class _Words:
    """Words, with a space between two of them and none at the ends of lines."""

    def __init__(self, words: list[str]):
        self.words = words
        self.last = ""

    def begin(self, prompt: bytes) -> str:
        text = prompt.decode(errors="replace")
        self.last = text[-1:]
        return text

    def add(self, number: int) -> str:
        word = self.words[number]
        text = "\n" if word == EOS else word if self.last in ("", " ", "\n") else f" {word}"
        self.last = text[-1:]
        return text

    def end(self) -> str:
        return ""


class _Subwords:
    """Subwords: how one looks depends on those before it, and some are parts of characters.

    The ids since the last whole character, and those before that were given out with it, are decoded together.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self.ids: list[int] = []
        self.given = 0  # of these ids
        self.known = ""  # their text

    def begin(self, prompt: bytes) -> str:
        self.ids = self.vocabulary.encode(prompt, "the prompt")
        self.given, self.known = len(self.ids), self.vocabulary.decode(self.ids)
        return prompt.decode()

    def add(self, number: int) -> str:
        self.ids.append(number)
        text = self.vocabulary.decode(self.ids)
        waits = text.endswith(BROKEN) and len(self.ids) - self.given < MOST
        return "" if waits else self._give(text)

    def end(self) -> str:
        return self._give(self.vocabulary.decode(self.ids))

    def _give(self, text: str) -> str:
        new = text[len(self.known) :]
        self.ids = self.ids[self.given :] or self.ids
        self.given, self.known = len(self.ids), self.vocabulary.decode(self.ids)
        return new
