"""What only a GPU can show: `python -m pytest -m gpu -n0`. Nothing here needs Hydra but what runs `launch.py`."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import ROOT
from tests.dropped import errors

pytestmark = pytest.mark.gpu

IMPLEMENTATIONS = ("dense", "banded", "fused")
PRECISIONS = ("fp32", "bf16")


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_attention_is_its_definition_forward_and_backward(attention, precision, dropout):
    found = errors(attention, "cuda", dropout, low=precision == "bf16")
    assert max(found.values()) < {"fp32": 1e-5, "bf16": 5e-2}[precision], found


def test_every_attention_trains_in_every_precision(launch, tmp_path):

    def losses(case):
        attention, precision, *model = case
        run = "-".join(case).replace("=", "")
        launch(
            f"run.dir={run}", "hardware=gpu", f"hardware.precision={precision}", f"model.attention={attention}",
            "model.dropout=0.1", "train.steps=5", "log.every=1", *model,
        )  # fmt: skip
        return [json.loads(line)["train/bpc"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]

    cases = [(attention, precision) for attention in IMPLEMENTATIONS for precision in PRECISIONS]
    cases += [(attention, "tf32") for attention in ("banded", "fused")]
    cases += [(attention, "bf16", "model.ffn_size=0", "model.memory_size=20") for attention in IMPLEMENTATIONS]
    with ThreadPoolExecutor(len(cases)) as together:
        found = dict(zip(cases, together.map(losses, cases), strict=True))
    for (attention, precision, *model), values in found.items():
        expected = found["dense", "bf16" if model else "fp32", *model]  # the weights and the text are the same
        assert values == pytest.approx(expected, abs=0.1), (attention, precision, *model)
        assert values[-1] < values[0]


GROWS = """
import torch
from adaptive_span.hardware import gpu
gpu.use(torch.device("cuda", 0))
torch.zeros(1, device="cuda")
assert torch.cuda.memory._snapshot()["allocator_settings"]["expandable_segments"]
"""


def test_its_memory_grows_in_segments_and_nothing_warns():
    result = subprocess.run([sys.executable, "-c", GROWS], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
