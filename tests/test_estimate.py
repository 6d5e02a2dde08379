"""What is estimated for a training, beside what steps took on a real GPU."""

import json
import sys

import pytest

from adaptive_span import cost
from adaptive_span.benchmark import profiles
from adaptive_span.cost import CARDS, Asked
from adaptive_span.estimate import ALLOCATOR
from tests.conftest import ROOT, finish

MEASURED = json.loads((ROOT / "docs/benchmarks/h200-2026-11-27.json").read_text())["steps"]
TIME, MEMORY = 0.10, 0.05  # relative errors allowed: those found are up to 0.07 and 0.01


def name(step):
    return f"{step['model']}-{step['rows']}-{step['precision']}"


def kernels(step):
    """Return what the formula gives for the kernels of a measured step, in ms."""
    model, card = profiles.sizes(step["model"]), CARDS["h200"]
    effective = (profiles.spans(step["profile"], model) + model.ramp).clamp(max=model.max_span)
    elements = cost.visited(model, effective.sum().item(), effective.numel(), step["rows"])
    parts = {
        part: Asked(row["launches"], 1e9 * row["GB"], 1e12 * row["TFLOP"])
        for part, row in step["counted"].items()
        if "GB" in row and part != "all"
    }
    head_size = model.hidden_size // model.num_heads
    return 1000 * sum(cost.seconds(parts, elements, head_size, step["precision"], card).values())


@pytest.mark.parametrize("step", MEASURED, ids=name)
def test_the_formula_gives_the_time_that_kernels_took(step):
    found = step["measured"]
    took = found.get("ms as one graph", found["ms"])
    assert kernels(step) == pytest.approx(took, rel=TIME)


@pytest.mark.parametrize("step", [step for step in MEASURED if "GiB" in step["measured"]], ids=name)
def test_the_count_gives_the_memory_that_was_held(step):
    held = ALLOCATOR * step["counted"]["height of the step"]["GiB kept"]
    assert held == pytest.approx(step["measured"]["GiB"], rel=MEMORY)


def test_it_says_memory_time_and_hours_for_a_gpu_that_is_not_here():
    pytest.importorskip("triton", reason="there is no triton for this system", exc_type=ImportError)
    words = "gpu=a100 data=enwik8 model=small".split()  # in bf16, as a training would be
    out = finish([sys.executable, "-m", "adaptive_span.estimate", *words], ROOT).stdout.splitlines()
    assert "bf16, on A100" in out[0]
    gib, ms, tokens, hours = (float(word.replace(",", "")) for word in out[3].split()[-4:])
    assert tokens == pytest.approx(64 * 256 / (ms / 1000), rel=0.01)
    assert hours == pytest.approx(150_000 * ms / 3.6e6, abs=0.06)
    assert 1 < gib < 79


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("gpu=h10", "gpu=h10 must be one of h200, h100, a100, 4090; did you mean 'h100'?"),
        ("", "there is no GPU here to estimate for; give gpu=h200|h100|a100|4090"),
        ("gpu=a100 model=huge", "model=huge must be one of "),
    ],
)
def test_what_it_cannot_estimate_is_one_sentence(words, told):
    result = finish([sys.executable, "-m", "adaptive_span.estimate", *words.split()], ROOT, ok=False)
    assert result.stderr.startswith(f"error: {told}")
