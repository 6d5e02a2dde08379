"""Windows of a text, and passkeys in them."""

from itertools import islice

import pytest
import torch

from adaptive_span.errors import UserError
from adaptive_span.hf import passkeys, text
from tests.unit.hf import byte_tokenizer

CONTEXT = 200


@pytest.fixture(scope="module")
def ids():
    words = "".join(f"line {n} of a text\n" for n in range(60)).encode()
    return text.encode(byte_tokenizer.tokenizer(), words, "a text", "train")


def test_a_long_text_is_encoded_in_pieces_that_join_and_no_further_than_asked(monkeypatch):
    tokenizer, words = byte_tokenizer.tokenizer(), "one line\nZoë\n\na line that is longer than a piece" * 3
    monkeypatch.setattr(text, "PIECE", 10)
    ids = text.encode(tokenizer, b"\xef\xbb\xbf" + words.encode(), "a text", "valid")
    assert tokenizer.decode(ids) == words
    assert torch.equal(text.encode(tokenizer, words.encode(), "a text", "valid", most=21), ids[:21])
    assert tokenizer.decode(text.encode(tokenizer, "Zoë".encode()[:-1], "a text", "valid")) == "Zo"
    with pytest.raises(UserError, match="a text: the byte 0xE9 at offset 4 of valid is not UTF-8"):
        text.encode(tokenizer, b"text\xe9 and on", "a text", "valid")


def test_windows_hold_the_text_once_each_behind_the_token_that_begins_one(ids):
    [begin] = text.start(byte_tokenizer.tokenizer(begins=True))
    assert text.start(byte_tokenizer.tokenizer()) == []
    windows = list(text.windows(ids, CONTEXT, [begin]))
    assert all(len(window) == CONTEXT and window[0] == begin for window in windows)
    joined = torch.cat([window[1:] for window in windows])
    assert torch.equal(joined, ids[: len(joined)])
    assert len(ids) - len(joined) < CONTEXT - 1


def test_a_generator_restored_draws_the_same_windows_again(ids):
    generator = torch.Generator().manual_seed(1)
    drawn = text.calibration(byte_tokenizer.tokenizer(), ids, CONTEXT, generator, passkeys=0.5)
    next(drawn)
    state = generator.get_state()
    later = list(islice(drawn, 6))
    resumed = text.calibration(
        byte_tokenizer.tokenizer(), ids, CONTEXT, torch.Generator().set_state(state), passkeys=0.5
    )
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(later, islice(resumed, 6), strict=True))


def test_a_window_with_a_passkey_keeps_its_length_and_ends_in_the_number_that_it_told(ids):
    tokenizer = byte_tokenizer.tokenizer(begins=True)
    drawn = text.calibration(tokenizer, ids, CONTEXT, torch.Generator().manual_seed(2), passkeys=1.0)
    places = set()
    for window, first in islice(drawn, 40):
        decoded = tokenizer.decode(window)
        number = decoded[-5:]
        told = decoded.index(f"The pass key is {number}. Remember it.")
        assert len(window) == CONTEXT
        assert decoded.endswith(f"What is the pass key? The pass key is {number}")
        assert decoded.startswith(byte_tokenizer.BEGIN)
        assert tokenizer.decode(window[first:]) == number  # the answer alone has a loss
        places.add(told)
    assert len(places) > 10  # early and late


def test_a_passkey_stands_at_the_distance_that_was_asked_for_up_to_the_bounds():
    tokenizer, window = byte_tokenizer.tokenizer(), torch.zeros(CONTEXT, dtype=torch.int64)
    passkey = passkeys.draw(tokenizer, torch.Generator().manual_seed(3))
    low, high = passkey.distances(CONTEXT, first=1)
    for distance in (low, 70, high):
        ids = passkey.put(window, distance)
        asks = CONTEXT - len(passkey.answer) - 1  # the token that predicts the first of the answer
        assert ids[asks - distance :][:5].tolist() == ids[asks + 1 :].tolist() == passkey.answer
        assert (ids[: passkeys.BEFORE + 1] == 0).all()


def test_about_as_many_windows_hold_a_passkey_as_asked(ids):
    tokenizer = byte_tokenizer.tokenizer()
    drawn = text.calibration(tokenizer, ids, CONTEXT, torch.Generator().manual_seed(4), passkeys=0.25)
    held = 0
    for window, first in islice(drawn, 400):
        holds = "pass key" in tokenizer.decode(window)
        assert (first > 1) == holds
        held += holds
    assert 70 < held < 130


def test_a_text_shorter_than_the_context_and_a_context_shorter_than_a_passkey_are_one_sentence(ids):
    tokenizer, generator = byte_tokenizer.tokenizer(), torch.Generator()
    with pytest.raises(
        UserError, match=r"the text has 30 tokens, fewer than context=200; give a longer text or a shorter context"
    ):
        text.windows(ids[:30], CONTEXT)
    with pytest.raises(UserError, match="the text has 30 tokens"):
        text.calibration(tokenizer, ids[:30], CONTEXT, generator)
    with pytest.raises(UserError, match="context=90 is too short for a passkey and its question, which take 97 tokens"):
        text.calibration(tokenizer, ids, 90, generator, passkeys=0.1)
