"""A number that is told once in a text and asked for at its end: it takes a head that sees as far to answer."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adaptive_span.errors import UserError

TOLD = "\nThe pass key is {}. Remember it.\n"
ASKED = "\nWhat is the pass key? The pass key is {}"
BEFORE = 16  # tokens of text that stand before the number is told, so that it is none of the sinks


@dataclass(frozen=True)
class Passkey:
    """Hold a number of five digits as tokens: told, asked for, answered.

    Attributes:
        told: the sentence that tells it.
        place: where in `told` the number begins.
        asked: the question, up to the number.
        answer: the number.
    """

    told: list[int]
    place: int
    asked: list[int]
    answer: list[int]

    @property
    def size(self) -> int:
        """Return the tokens that it takes in a window."""
        return len(self.told) + len(self.asked) + len(self.answer)

    def distances(self, context: int, first: int = 0) -> tuple[int, int]:
        """Return the shortest and the longest distance at which it fits into a window.

        Args:
            context: tokens of the window.
            first: tokens that the tokenizer puts before each text.

        Raises:
            UserError: The window is too short.
        """
        last = context - len(self.answer) - 1  # it predicts the answer's first token
        earliest, latest = first + BEFORE, context - self.size
        if latest < earliest:
            raise UserError(
                f"context={context} is too short for a passkey and its question, which take "
                f"{self.size + earliest} tokens; give more"
            )
        return last - latest - self.place, last - earliest - self.place

    def put(self, window: Tensor, distance: int) -> Tensor:
        """Return a window, (context,), that tells the number, goes on with its text, and ends in question and answer.

        Args:
            window: token ids, (context,). As many of its last tokens are left out as the passkey takes.
            distance: tokens from where the number is told to where its answer begins to be predicted.
        """
        at = len(window) - len(self.answer) - 1 - distance - self.place
        text = window[: len(window) - self.size]
        told, end = window.new_tensor(self.told), window.new_tensor(self.asked + self.answer)
        return torch.cat([text[:at], told, text[at:], end])


def draw(tokenizer: PreTrainedTokenizerBase, generator: torch.Generator) -> Passkey:
    """Return a random passkey, as a tokenizer writes it."""
    digits = str(int(torch.randint(10_000, 100_000, (), generator=generator)))
    other = "".join(str((int(digit) + 5) % 10) for digit in digits)

    def encode(sentence: str, number: str) -> list[int]:
        ids: list[int] = tokenizer(sentence.format(number), add_special_tokens=False)["input_ids"]
        return ids

    told, asked = encode(TOLD, digits), encode(ASKED, digits)
    place, begin = (_first_difference(ids, encode(s, other)) for ids, s in ((told, TOLD), (asked, ASKED)))
    return Passkey(told, place, asked[:begin], asked[begin:])


def _first_difference(one: list[int], other: list[int]) -> int:
    return next(n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
