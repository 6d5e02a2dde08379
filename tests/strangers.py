"""Small files of each kind that strangers may hand over, for the tests that change them."""

import torch

from adaptive_span.checkpoint import files
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.optimizer_schema import OptimizerConfig
from adaptive_span.config.schema import CheckpointConfig, Config, LogConfig, TrackingConfig, ValidationConfig
from adaptive_span.config.train_schema import TrainConfig
from adaptive_span.model.transformer import Transformer
from adaptive_span.training import random_state
from tests.conftest import ROOT

TINY = ModelConfig(name="tiny", num_layers=2, hidden_size=8, ffn_size=16, num_heads=2, max_span=8, block_size=4)

CONFIG = Config(
    TINY,
    DataConfig("stdlib", source="stdlib"),
    OptimizerConfig("sgd", 0.1, 1.0),
    HardwareConfig("cpu"),
    TrackingConfig("none"),
    TrainConfig(steps=3, warmup_steps=1, batch_size=2, span_penalty=0.0),
    ValidationConfig(1, 1),
    CheckpointConfig(1),
    LogConfig(1),
)


def state() -> files.State:
    """Return what `best.pt` of a small model holds."""
    return {
        "config": CONFIG.as_dict(),
        "corpus": "0" * 64,
        "vocab_size": 5,
        "step": 3,
        "best": 1.0,
        "run_id": None,
        "model": Transformer(TINY, 5).state_dict(),
    }


def training_state() -> files.State:
    """Return what `step_*.pt` of it holds."""
    own = {"random": random_state.random_state(torch.device("cpu")), "nats": 1.0}
    return state() | {
        "optimizer": {"state": {0: {"sum": torch.ones(5, 8)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "stream": {"position": 4, "generator": torch.Generator().get_state()},
        "cache": [torch.zeros(2, 8, 8), torch.zeros(2, 8, 8)],
        "limits": [[8, 8], [8, 8]],
        "processes": [own],
        "updates": 1,
    }


def original() -> files.State:
    """Return what the original project would have saved."""
    vectors = torch.load(ROOT / "tests" / "vectors" / "adaptive.pt", weights_only=True)
    own = {name: tensor for name, tensor in vectors["state_dict"].items() if name in vectors["grads"]}
    gathered = {index: {"step": torch.tensor(7.0), "sum": tensor.abs()} for index, tensor in enumerate(own.values())}
    return {
        "iter_no": 0,
        "model": vectors["state_dict"],
        "logger": {"train_bpc": [3.0]},
        "optimizer": {"state": gathered, "param_groups": [{"params": list(range(len(own)))}]},
        "scheduler_iter": 7,
    }
