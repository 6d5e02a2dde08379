"""What a training step of the published model launches, moves and keeps on a GPU, counted without one."""

import json
import sys
from dataclasses import replace

import pytest

from adaptive_span.attention import span_bounds
from adaptive_span.benchmark import profiles
from adaptive_span.config.optimizer_schema import OptimizerConfig
from adaptive_span.config.schema import Config
from adaptive_span.config.train_schema import TrainConfig
from adaptive_span.hardware import capacity
from adaptive_span.training.out_of_memory import step_bytes
from tests.conftest import ROOT, finish

pytest.importorskip("triton", reason="there is no triton for this system", exc_type=ImportError)

# Of `large` with 64 rows in bf16. They are only ever lowered.
MOST = {"launches": 1920, "GB": 247, "GiB kept": 18.5}


def test_a_step_asks_for_no_more_than_it_did(tmp_path):
    finish([sys.executable, "-m", "adaptive_span.benchmark", "count", "--json", str(tmp_path / "found.json")], ROOT)
    step = json.loads((tmp_path / "found.json").read_text())["rows"]["all"]
    assert all(step[what] <= most for what, most in MOST.items()), step
    assert step["TFLOP"] == pytest.approx(45.5, rel=0.02)  # so that nothing is left out


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_advice_on_memory_is_near_what_is_counted(precision, tmp_path):
    words = f"count --model base --batch-size 64 --dtype {precision} --json".split()
    finish([sys.executable, "-m", "adaptive_span.benchmark", *words, str(tmp_path / "found.json")], ROOT)
    counted = json.loads((tmp_path / "found.json").read_text())["rows"]["height of the step"]["GiB kept"]
    model = replace(profiles.sizes("base"), attention="fused", dropout=0.4)
    config = Config(model=model, optimizer=OptimizerConfig("adagrad", 0.07, 0.03), train=TrainConfig(1, 0, 0, 64))
    config.hardware.precision = precision
    seen = (profiles.spans("paper", model) + model.ramp).clamp(max=model.max_span)
    parameters = capacity.parameters(model, profiles.VOCAB_SIZE)
    said = step_bytes(config, 1, parameters, span_bounds.fresh(seen.tolist(), model.max_span))
    assert said / 2**30 == pytest.approx(counted, rel=0.3)
