"""What only a GPU can show: `python -m pytest -m gpu -n0`. Nothing here needs Hydra but what runs `launch.py`."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

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
    pytest.importorskip("hydra")

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
from adaptive_span import gpu
gpu.use(torch.device("cuda", 0))
torch.zeros(1, device="cuda")
assert torch.cuda.memory._snapshot()["allocator_settings"]["expandable_segments"]
"""


def test_its_memory_grows_in_segments_and_nothing_warns():
    result = subprocess.run([sys.executable, "-c", GROWS], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


CASES = [
    "hardware.precision=bf16",
    "hardware.precision=fp32 train.batch_split=2",
    "hardware.precision=bf16 optimizer=adam optimizer.clip=1 optimizer.lr=0.01",
    "hardware.precision=bf16 optimizer=sgd optimizer.momentum=0.9 optimizer.clip=1 optimizer.lr=0.1",
    "hardware.precision=bf16 hardware.activation_checkpointing=true",
    "hardware.precision=bf16 model.ffn_size=0 model.memory_size=40",
    "hardware.precision=fp32 model.attention=banded",
    "hardware.precision=bf16 model.attention=dense",
]
GROWING = "hardware=gpu model.hidden_size=64 model.dropout=0.2 model.max_span=300 train.span_penalty=0".split()


def trained(text, tmp_path, steps, *settings, start=None):
    """The training after so many steps, and how many of them were replayed."""
    from tests.test_training import small

    training = small(text, tmp_path, *GROWING, *settings, device="cuda")
    if start is not None:
        training.load_state_dict(start)
    for _ in range(steps):
        training.update()
    return training


def assert_same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one["limits"] == other["limits"]
    for state in (one, other):
        state["sums"], state["drawn"] = state["optimizer"]["state"], state["processes"][0]["random"]["cuda"]
    for kind in ("model", "sums", "cache", "drawn"):
        torch.testing.assert_close(one[kind], other[kind], rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_graph_computes_what_launches_one_by_one_do(case, text, tmp_path, capfd):
    """To the last bit, while spans grow, and over the end of the text."""
    pytest.importorskip("hydra")
    settings = [*case.split(), "train.batch_size=16"]
    graph = trained(text, tmp_path, 170, *settings)
    assert graph.graph.replays > 50
    assert "one by one" not in capfd.readouterr().out
    assert_same(graph, trained(text, tmp_path, 170, *settings, "hardware.graphs=off"))


def test_a_resumed_run_with_graphs_is_the_uninterrupted_one(text, tmp_path):
    pytest.importorskip("hydra")
    whole = trained(text, tmp_path, 60)
    half = trained(text, tmp_path, 30)
    assert_same(whole, trained(text, tmp_path, 30, start=half.state_dict()))


def test_what_cannot_be_recorded_is_launched_one_by_one(capfd):
    from adaptive_span.step_graph import StepGraph

    graph, number = StepGraph(), torch.ones((), device="cuda")

    def function():
        torch.rand(3, device="cuda")
        return number * number.item()

    torch.manual_seed(0)
    found = [graph.run("key", function, function).item() for _ in range(4)]
    drawn = torch.rand(3, device="cuda")
    assert found == [1.0] * 4
    assert capfd.readouterr().out.count("launched one by one") == 1
    torch.manual_seed(0)
    for _ in range(4):
        function()
    assert torch.equal(torch.rand(3, device="cuda"), drawn)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_score_by_graphs_is_the_score(rows):
    from adaptive_span import evaluation
    from adaptive_span.config import ModelConfig
    from adaptive_span.distributed import Process
    from adaptive_span.model import Transformer

    config = ModelConfig(
        "tiny", num_layers=2, hidden_size=64, ffn_size=128, num_heads=2, max_span=200, block_size=16, span_init=0.3
    )
    model, tokens = Transformer(config, 9).cuda(), torch.randint(9, (2000,)).numpy()
    process = Process(0, 1, torch.device("cuda", 0))
    expected = evaluation.exact(model, tokens, rows, 16, process, "test")
    assert evaluation.exact(model, tokens, rows, 16, process, "test", graphs=True) == expected
