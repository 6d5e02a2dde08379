"""Steps as CUDA graphs, on a GPU: `python -m pytest -m gpu -n0 tests/gpu/test_gpu_graphs.py`."""

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("hydra", reason="its trainings are composed by Hydra")

from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.data.corpus import prepare
from adaptive_span.distributed import Process
from adaptive_span.evaluation import scoring
from adaptive_span.hardware.step_graph import StepGraph
from adaptive_span.model.transformer import Transformer
from adaptive_span.training.state import TrainState
from tests.conftest import SMALL
from tests.unit.config.test_config import composed
from tests.unit.training.test_training import small

pytestmark = pytest.mark.gpu

CASES = [
    "hardware.precision=bf16",
    "hardware.precision=fp32 train.batch_split=2",
    "hardware.precision=bf16 optimizer=adam optimizer.clip=1 optimizer.lr=0.01",
    "hardware.precision=bf16 optimizer=sgd optimizer.momentum=0.9 optimizer.clip=1 optimizer.lr=0.1",
    "hardware.precision=bf16 hardware.activation_checkpointing=true",
    "hardware.precision=bf16 model.ffn_size=0 model.memory_size=40",
    "hardware.precision=fp32 model.attention=banded",
    "hardware.precision=bf16 model.attention=dense",
    "hardware.precision=bf16 train.init_from=x train.freeze=weights",
    "hardware.precision=bf16 train.average=0.9",
    "hardware.precision=bf16 optimizer=muon model.activation=relu2 model.norm=pre model.norm_kind=rms",
]
GROWING = "hardware=gpu model.hidden_size=64 model.dropout=0.2 model.max_span=300 train.span_penalty=0".split()


def trained(text, tmp_path, steps, *settings, start=None):
    """The training after so many steps, and how many of them were replayed."""
    training = small(text, tmp_path, *GROWING, *settings, device="cuda")
    if start is not None:
        training.load_state_dict(start)
    for _ in range(steps):
        training.update()
    return training


def train_as_one_of_two(rank, directory, text, settings):
    """In a process of its own; both share the GPU, where NCCL would refuse to add up."""

    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2)
    process = Process(rank, 2, torch.device("cuda", 0))
    config = composed("data=files", f"data.path={text}", f"data.directory={directory}", *SMALL, *settings)
    training = TrainState(config, prepare(config.data), process)
    for _ in range(40):
        training.update()
    state = training.state_dict()
    if rank == 0:
        torch.save({"model": state["model"], "replays": training.graph.replays}, directory / "end.pt")
    dist.destroy_process_group()


def test_two_processes_that_replay_graphs_train_as_one_does(text, tmp_path):
    settings = [*GROWING, "model.dropout=0", "hardware.precision=fp32"]
    prepared = trained(text, tmp_path, 40, "model.dropout=0", "hardware.precision=fp32")
    torch.multiprocessing.spawn(train_as_one_of_two, (tmp_path, text, settings), nprocs=2)
    end = torch.load(tmp_path / "end.pt")
    assert end["replays"] > 10
    torch.testing.assert_close(end["model"], prepared.state_dict()["model"], rtol=0, atol=1e-3)


def test_a_graph_takes_no_more_memory(text, tmp_path):
    def peak(*settings):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        trained(text, tmp_path, 20, "model.hidden_size=256", "train.batch_size=64", *settings)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_reserved()

    peak()  # what is compiled and loaded at first
    workspaces = 2 * 32 * 2**20  # of cuBLAS and cuBLASLt, for the stream that records
    assert peak() <= peak("hardware.graphs=off") + workspaces + 2**24


def assert_same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one["limits"] == other["limits"]
    for state in (one, other):
        state["sums"], state["drawn"] = state["optimizer"]["state"], state["processes"][0]["random"]["cuda"]
    for kind in ("model", "sums", "cache", "drawn", *(["average"] if "average" in one else [])):
        torch.testing.assert_close(one[kind], other[kind], rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_graph_computes_what_launches_one_by_one_do(case, text, tmp_path, capfd):
    """To the last bit, while spans grow, and over the end of the text."""
    settings = [*case.split(), "train.batch_size=16"]
    graph = trained(text, tmp_path, 170, *settings)
    assert graph.graph.replays > 50
    assert "one by one" not in capfd.readouterr().out
    assert_same(graph, trained(text, tmp_path, 170, *settings, "hardware.graphs=off"))


def test_a_resumed_run_with_graphs_is_the_uninterrupted_one(text, tmp_path):
    whole = trained(text, tmp_path, 60, "train.average=0.9")
    half = trained(text, tmp_path, 30, "train.average=0.9")
    assert_same(whole, trained(text, tmp_path, 30, "train.average=0.9", start=half.state_dict()))


def test_what_cannot_be_recorded_is_launched_one_by_one(capfd):
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
    config = ModelConfig(
        "tiny", num_layers=2, hidden_size=64, ffn_size=128, num_heads=2, max_span=200, block_size=16, span_init=0.3
    )
    model, tokens = Transformer(config, 9).cuda(), torch.randint(9, (2000,)).numpy()
    process = Process(0, 1, torch.device("cuda", 0))
    expected = scoring.score_exactly(model, tokens, rows, 16, process, "test")
    assert scoring.score_exactly(model, tokens, rows, 16, process, "test", graphs=True) == expected
