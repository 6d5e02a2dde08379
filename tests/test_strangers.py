"""What strangers hand over is data: read, or refused in one sentence; never run, never larger than it is."""

import copy
from pathlib import Path

import pytest
import torch

from adaptive_span import checkpoint, published, stored_model
from adaptive_span.config import Config, ModelConfig, OptimizerConfig
from adaptive_span.errors import UserError
from adaptive_span.model import Transformer

TINY = ModelConfig(name="tiny", num_layers=2, hidden_size=8, ffn_size=16, num_heads=2, max_span=8, block_size=4)


def state() -> checkpoint.State:
    """Return what `best.pt` of a small model holds."""
    return {
        "config": Config(model=TINY, optimizer=OptimizerConfig("sgd", 0.1, 1.0)).as_dict(),
        "corpus": "0" * 64,
        "vocab_size": 5,
        "step": 3,
        "best": 1.0,
        "run_id": None,
        "model": Transformer(TINY, 5).state_dict(),
    }


def changed(path: str, value: object) -> checkpoint.State:
    """Return that with another value, or without one."""
    made = copy.deepcopy(state())
    *outer, last = path.split(".")
    part = made
    for key in outer:
        part = part[key]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return made


def load(path: Path) -> None:
    stored_model.model_of(published.load(path), path, torch.device("cpu"))


def test_a_checkpoint_says_its_format_and_one_without_is_read(tmp_path):
    checkpoint.save(state(), tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True)["format"] == checkpoint.FORMAT
    torch.save(state(), tmp_path / "old.pt")
    load(tmp_path / "old.pt")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("format", checkpoint.FORMAT + 1, "was written by a newer version of adaptive-span (format 2; this one reads"),
        ("format", "x", "has format=x, which is not int"),
        ("config.model.rope", True, "has the key 'model.rope', which this version of adaptive-span does not know"),
        ("config.modle", {}, "has the key 'modle', which this version of adaptive-span does not know; did you mean 'm"),
        ("config.model.num_layers", "x", "has model.num_layers=x, which is not int"),
        ("config.model.num_layers", 10**9, "describes a model with num_layers=1000000000, but holds only"),
        ("config.model.hidden_size", 10**12, "describes a model with hidden_size=1000000000000, but holds only"),
        ("config.model.max_span", 10**12, "describes a model with max_span=1000000000000, but holds only"),
        ("config.model.max_span", 16, "does not fit this model: positions has shape (4, 8) there and (4, 16) here"),
        ("vocab_size", 10**12, "describes a model with vocab_size=1000000000000, but holds only"),
        ("config.model.hidden_size", {"_target_": "os.system"}, "has model.hidden_size={'_target_': 'os.system'}, wh"),
        ("config.model.name", {"_target_": "os.system"}, "has model.name={'_target_': 'os.system'}, which is not str"),
        ("config.sweep", {"x": torch.zeros(3)}, "has sweep={'x': tensor([0., 0., 0.])}, which is not"),
        ("config", None, "lacks the key 'config'"),
        ("step", None, "lacks the key 'step'"),
        ("model", [1], "has model=[1], which is not"),
        ("model.positions", torch.zeros(1).expand(10**12), "holds a tensor of (1000000000000,) that repeats fewer"),
        ("model.positions", torch.eye(3).to_sparse(), "which was refused"),
        ("model.positions", bytearray(3), "which was refused"),
    ],
)
def test_a_checkpoint_that_is_no_checkpoint_is_told(path, value, told, tmp_path):
    torch.save(changed(path, value), tmp_path / "x.pt")
    with pytest.raises(UserError) as refused:
        load(tmp_path / "x.pt")
    assert str(refused.value).startswith(f"{tmp_path / 'x.pt'} ") or "holds a tensor" in str(refused.value)
    assert told in str(refused.value)
