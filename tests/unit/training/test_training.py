"""What one update changes, without processes and files around it."""

from pathlib import Path

import pytest
import torch

from adaptive_span.data.corpus import prepare
from adaptive_span.distributed import Process
from adaptive_span.errors import UserError
from adaptive_span.training import optimizer
from adaptive_span.training.state import TrainState
from tests.conftest import SMALL
from tests.unit.config.test_config import composed


def small(text: Path, directory: Path, *settings: str, device: str = "cpu") -> TrainState:
    config = composed("data=files", f"data.path={text}", f"data.directory={directory}", *SMALL, *settings)
    return TrainState(config, prepare(config.data), Process(0, 1, torch.device(device)))


def test_no_span_outgrows_what_the_next_step_looks_at(text, tmp_path):
    """However fast spans would grow: what the host knows of them is one update old."""
    training = small(
        text, tmp_path, "model.max_span=300", "optimizer.lr=3", "optimizer.clip=100", "train.warmup_steps=0",
        "train.span_penalty=0",
    )  # fmt: skip
    grown, held = [], 0
    for _ in range(8):
        before = training.model.spans()
        training.update()
        spans, bounds = training.model.spans(), torch.tensor(training.span_bounds)
        assert (spans <= bounds + 1e-3).all()
        held += int(((spans >= bounds - 1e-3) & (bounds < 300)).sum())
        grown.append((spans - before).max().item())
    assert max(grown) > 8  # more than the slack
    assert held > 0


@pytest.mark.parametrize("at_once", [1, 53, 60])
def test_adagrad_is_the_same_however_many_tensors_it_updates_at_once(at_once, monkeypatch):
    def updated():
        draw = torch.Generator().manual_seed(0)
        tensors = [torch.nn.Parameter(torch.randn(size, generator=draw)) for size in (50, 3, 7, 1, 90)]
        adagrad = optimizer.ClippedAdagrad(tensors, lr=0.1, clip=0.5)
        for _ in range(2):
            for tensor in tensors:
                tensor.grad = torch.randn(len(tensor), generator=draw)
            norm = adagrad.step()
        return [*tensors, norm]

    expected = updated()
    monkeypatch.setitem(optimizer.AT_ONCE, "cpu", at_once)
    assert all(map(torch.equal, updated(), expected))


@pytest.mark.parametrize("name", ["adagrad", "adam", "sgd"])
def test_a_gradient_that_is_not_finite_is_named_with_its_step(name, text, tmp_path):
    """Whatever the update then made of it."""
    training = small(text, tmp_path, f"optimizer={name}")
    training.update()
    weight = dict(training.model.named_parameters())["feed_forward_blocks.1.expand.weight"]
    weight.register_hook(lambda gradient: gradient / 0)
    training.update()
    with pytest.raises(
        UserError, match=r"the gradient of feed_forward_blocks.1.expand.weight is not finite at step 2; "
    ):
        training.collect()
    with pytest.raises(UserError, match="is not finite after step 2"):
        training.weights()
