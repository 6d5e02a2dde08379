"""Text as the tokens of a model: windows of held-out text, one after another, and random ones to calibrate on."""

import codecs
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adaptive_span.data import source
from adaptive_span.errors import UserError
from adaptive_span.hf.passkeys import draw as draw_passkey

PIECE = 1 << 17  # characters that are encoded at once, up to the end of a line: memory stays bounded


class Sample(NamedTuple):
    """Hold what one step of a fit reads: a text, and which of its tokens have a loss.

    Of a text with a passkey only the answer has one. Its five digits would count for nothing among a thousand tokens.
    """

    tokens: Tensor  # (context,)
    first: int = 1  # the first token whose loss counts, with all after it


def encode(tokenizer: PreTrainedTokenizerBase, text: bytes, name: str, split: str, most: int | None = None) -> Tensor:
    """Return the token ids of a text, (N,), without the tokens that begin or end one.

    Args:
        tokenizer: of the model.
        text: UTF-8; a character that is cut off at its end is left out.
        name: what the text is called in messages.
        split: the part of it that this is.
        most: ids after which to stop; None for all.

    Raises:
        UserError: The text is not UTF-8.
    """
    try:
        characters, _ = codecs.utf_8_decode(text.removeprefix(codecs.BOM_UTF8), "strict", False)
    except UnicodeDecodeError as error:
        raise source.not_utf8(name, split, error.start, text[error.start :]) from None
    ids: list[int] = []
    begin = 0
    while begin < len(characters) and (most is None or len(ids) < most):
        end = characters.rfind("\n", begin, begin + PIECE) + 1 or begin + PIECE
        ids += tokenizer(characters[begin:end], add_special_tokens=False, verbose=False)["input_ids"]
        begin = end
    return torch.tensor(ids[:most])


def start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what a tokenizer puts before each text: the token that begins one, or nothing."""
    begins = tokenizer.bos_token_id in tokenizer("")["input_ids"]
    return [tokenizer.bos_token_id] if begins else []


def windows(ids: Tensor, context: int, start: Sequence[int] = ()) -> Iterator[Tensor]:
    """Return windows of a text, each (context,), one after another and without overlap. What is left over is dropped.

    Args:
        ids: the text, (N,).
        context: tokens of a window.
        start: the tokens that each begins with.

    Raises:
        UserError: The text is shorter than a window.
    """
    size = context - len(start)
    _check(ids, size, context)
    first = ids.new_tensor(start)
    return (torch.cat([first, ids[n : n + size]]) for n in range(0, len(ids) - size + 1, size))


def calibration(
    tokenizer: PreTrainedTokenizerBase, ids: Tensor, context: int, generator: torch.Generator, passkeys: float = 0.0
) -> Iterator[Sample]:
    """Return random samples of a text without end. The generator's state says which come next.

    Args:
        tokenizer: of the model.
        ids: the text, (N,).
        context: tokens of a sample.
        generator: of the CPU.
        passkeys: the probability with which a sample tells a number, and is about its answer at the end.

    Raises:
        UserError: The text is shorter than a sample, or a sample too short for a passkey.
    """
    first = start(tokenizer)
    _check(ids, context - len(first), context)
    if passkeys:
        draw_passkey(tokenizer, torch.Generator()).distances(context, len(first))
    return _random(tokenizer, ids, context, generator, passkeys, first)


def _random(
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
    context: int,
    generator: torch.Generator,
    share: float,
    first: list[int],
) -> Iterator[Sample]:
    size = context - len(first)
    while True:
        at = int(torch.randint(len(ids) - size + 1, (), generator=generator))
        window = torch.cat([ids.new_tensor(first), ids[at : at + size]])
        if share and float(torch.rand((), generator=generator)) < share:
            passkey = draw_passkey(tokenizer, generator)
            low, high = passkey.distances(context, len(first))
            distance = int(torch.randint(low, high + 1, (), generator=generator))
            yield Sample(passkey.put(window, distance), context - len(passkey.answer))
        else:
            yield Sample(window)


def _check(ids: Tensor, size: int, context: int) -> None:
    if len(ids) < size:
        raise UserError(
            f"the text has {len(ids):,} tokens, fewer than context={context}; give a longer text or a shorter context"
        )
