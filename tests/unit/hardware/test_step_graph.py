"""What a CUDA graph needs of a step, on a CPU: the same work on the same addresses; and how often it is recorded.

The graph itself is tested on a GPU, in tests/gpu/test_gpu.py.
"""

import random

import pytest
import torch

from adaptive_span.attention import span_bounds
from adaptive_span.benchmark.profiles import PAPER
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.distributed import Process
from adaptive_span.evaluation import scoring
from adaptive_span.model.transformer import Transformer
from tests.unit.training.test_training import small

MAX_SPAN = 8192


class Repeated:
    """Repeats what a graph would have recorded, by running it again."""

    def __init__(self):
        self.key, self.repeated = None, 0

    def run(self, key, anywhere, in_place):
        if key != self.key:
            self.key = key
            return anywhere()
        self.repeated += 1
        return in_place()


@pytest.mark.parametrize("settings", ["train.batch_split=2", "optimizer=adam", "model.memory_size=8 model.ffn_size=0"])
def test_a_step_in_place_is_the_same_step(settings, text, tmp_path):
    """Also over the end of the text, from where it starts again."""
    plain, fixed = (small(text, tmp_path, "model.dropout=0.2", *settings.split()) for _ in range(2))
    fixed.graph = Repeated()
    plain.stream.position = fixed.stream.position = plain.stream.rows.shape[1] - 160
    states = []
    for training in (plain, fixed):
        torch.manual_seed(1)
        for _ in range(20):
            training.update()
        states.append(training.state_dict())
    assert fixed.graph.repeated > 5
    for kind in ("model", "optimizer"):
        torch.testing.assert_close(states[0][kind], states[1][kind], rtol=0, atol=0)
    torch.testing.assert_close(states[0]["cache"], states[1]["cache"], rtol=0, atol=0)


def growing(step, steps, targets, rates):
    return [
        [32 + (target - 32) * (1 - 2.718281828 ** (-rate * step / steps)) for target, rate in zip(*heads, strict=True)]
        for heads in zip(targets, rates, strict=True)
    ]


def test_bounds_change_rarely_and_waste_little():
    """The spans of `large` (24 layers of 8 heads) grow from nothing to the published ones in 170,000 steps.

    A step takes 0.12 s on an H200; one whose bounds are new costs 0.6 s more (one launched one by one, one recorded).
    """
    draw = random.Random(0)
    targets = [row for row in PAPER for _ in range(2)]
    rates = [[draw.uniform(3, 17) for _ in row] for row in targets]
    steps, every = 170_000, 10  # updates move a span by far less than a token, and a tenth of them is looked at
    bounds, changes, waste = [], 0, []
    for step in range(0, steps, every):
        spans = [[span + draw.gauss(0, 0.3) for span in heads] for heads in growing(step, steps, targets, rates)]
        now = span_bounds.renewed(bounds, spans, MAX_SPAN, 512)
        changes += now is not bounds
        bounds = now
        assert (torch.tensor(spans) <= torch.tensor(bounds)).all()
        exact = span_bounds.work([[int(span) for span in heads] for heads in spans], 512)
        waste.append(span_bounds.work(bounds, 512) / exact - 1)
    assert changes * 0.6 < 0.02 * steps * 0.12, changes
    assert sum(waste) / len(waste) < 0.05


@pytest.mark.parametrize("rows", [1, 3])
def test_a_block_in_place_has_the_same_score(rows, monkeypatch):
    config = ModelConfig(
        "tiny", num_layers=2, hidden_size=16, ffn_size=32, num_heads=2, max_span=20, block_size=4, span_init=0.3
    )
    model, tokens, alone = Transformer(config, 9), torch.randint(9, (200,)).numpy(), Process(0, 1, torch.device("cpu"))
    expected = scoring.score_exactly(model, tokens, rows, 4, alone, "test")
    repeated, begin = Repeated(), scoring.Reader.__init__

    def as_a_graph(reader, *given):
        begin(reader, *given)
        reader.graph = repeated

    monkeypatch.setattr(scoring.Reader, "__init__", as_a_graph)
    assert scoring.score_exactly(model, tokens, rows, 4, alone, "test") == expected
    assert repeated.repeated > 5
