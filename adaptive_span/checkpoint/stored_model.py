"""Build the model that a checkpoint describes, once its description and its tensors are known to agree.

A description may ask for anything. Nothing is allocated from it before the shapes in the file have confirmed it.
"""

from dataclasses import replace
from pathlib import Path

import torch

from adaptive_span.checkpoint import files
from adaptive_span.config.checks import MISSING
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.registry import ATTENTIONS, is_exchangeable
from adaptive_span.errors import UserError
from adaptive_span.model.transformer import Transformer
from adaptive_span.storage.stored import from_dict, shortened

SIZES = ("hidden_size", "ffn_size", "num_heads", "max_span", "memory_size")  # each so many numbers of some tensor


def config_of(state: files.State, source: Path) -> ModelConfig:
    """Return the configuration of a checkpoint's model.

    Raises:
        UserError: Its tensors have other shapes.
    """
    config, tensors = from_dict(state["config"].get("model"), ModelConfig, source, "model."), state["model"]
    numbers = sum(tensor.numel() for tensor in tensors.values())
    most = dict.fromkeys(SIZES, numbers) | {"num_layers": len(tensors)}
    for key, value in (*vars(config).items(), ("vocab_size", state["vocab_size"])):
        if value == MISSING:
            raise UserError(f"{source} does not say what its model.{key} is; take a file that training wrote")
        if (key == "vocab_size" and not 1 <= value <= numbers) or (key in most and value > most[key]):
            raise UserError(
                f"{source} describes a model with {key}={shortened(value)}, but holds only {len(tensors):,} tensors "
                f"with {numbers:,} numbers: it has been changed or damaged"
            )
    if config.attention not in ATTENTIONS:
        raise UserError(
            f"{source} was trained with model.attention={shortened(config.attention)}, which is not registered; give "
            f"plugins=[…] with the module that registers it"
        )
    with torch.device("meta"):
        model = Transformer(config, state["vocab_size"])
    files.check_fits(model, tensors, source)
    return config


def model_of(state: files.State, source: Path, device: torch.device) -> Transformer:
    """Build the model of a checkpoint, with its weights, on a device that may be another one than it was trained on."""
    files.check_finite(state["model"], source)
    config = config_of(state, source)
    if is_exchangeable(config.attention):
        config = replace(config, attention="auto")
    model = Transformer(config, state["vocab_size"])
    model.load_state_dict(state["model"])
    return model.to(device)
