"""Passkeys that a model is asked for, here a function that finds what it sees and nothing else."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from adaptive_span.hf import needles, text
from tests.unit.hf.byte_tokenizer import tokenizer
from tests.unit.hf.tiny_models import tiny

CONTEXT = 400


class Copies:
    """Says that what followed the last two tokens, where they stood before, comes next; as far back as it sees."""

    device = torch.device("cpu")

    def __init__(self, sees):
        self.sees = sees

    def __call__(self, tokens, use_cache):
        [ids] = tokens.tolist()
        logits = torch.zeros(1, len(ids), 257)
        for last in range(len(ids) - 6, len(ids)):
            ends = [n for n in range(20, last) if ids[n - 10 : n + 1] == ids[last - 10 : last + 1]]
            for end in ends:
                if last - end < self.sees:  # the token behind `end` is a token nearer
                    logits[0, last, ids[end + 1]] = 9.0
        return SimpleNamespace(logits=logits)


@pytest.fixture(scope="module")
def measured():
    ids = text.encode(tokenizer(), bytes(range(97, 123)) * 40, "a text", "valid")
    return {sees: needles.measure(Copies(sees), tokenizer(), ids, CONTEXT, trials=2, seed=3) for sees in (0, 200, 400)}


def test_a_number_is_found_at_the_distances_that_a_model_sees(measured):
    distances = measured[400]["distances"]
    gaps = {b - a for a, b in pairwise(distances)}
    assert len(distances) == 10
    assert max(gaps) - min(gaps) <= 1
    assert distances[-1] > 0.75 * CONTEXT
    assert measured[400]["found"] == [1.0] * 10
    assert measured[200]["found"] == [float(distance <= 200) for distance in distances]
    assert max(measured[200]["nats"][:3]) < 0.1 < 3 < min(measured[200]["nats"][-3:])


def test_the_sentence_says_whether_retrieval_fell_and_at_which_distances(measured):
    far = [distance for distance in measured[400]["distances"] if distance > 200]
    listed = ", ".join(map(str, far[:-1])) + f" and {far[-1]}"
    assert needles.sentence(measured[400], measured[200]) == (
        f"Retrieval fell at {len(far)} of 10 distances, {listed} tokens: of {2 * len(far)} passkeys there, "
        f"{2 * len(far)} were found before and 0 are found after."
    )
    assert needles.sentence(measured[200], measured[400]).startswith("Passkeys are found as before at all 10 distances")
    assert needles.sentence(measured[0], measured[0]).startswith("The model found no passkey before the fit either")
    assert needles.sentence(measured[0], measured[0]).endswith("took 5.55 nats per token before and take 5.55 after.")


def test_the_same_seed_asks_a_model_of_transformers_the_same_questions():
    ids = text.encode(tokenizer(), bytes(range(97, 123)) * 20, "a text", "valid")
    one, same, other = (
        needles.measure(tiny("llama", vocab_size=257), tokenizer(), ids, 200, 1, seed) for seed in (1, 1, 2)
    )
    assert one == same
    assert one["nats"] != other["nats"]
