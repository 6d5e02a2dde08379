"""Read and write models as a folder or a repository of the Hugging Face Hub: model.safetensors and config.json.

Needs `pip install 'adaptive-span[export]'`; nothing else in the package does.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from adaptive_span.checkpoint import files, original
from adaptive_span.checkpoint.stored_model import config_of
from adaptive_span.config.schema import ModelConfig
from adaptive_span.errors import UserError
from adaptive_span.model.transformer import Transformer
from adaptive_span.storage.stored import from_dict

try:
    from huggingface_hub import PyTorchModelHubMixin
    from safetensors import SafetensorError
except ModuleNotFoundError as missing:
    raise UserError(f"there is no {missing.name} here; pip install 'adaptive-span[export]' brings it") from None


class PretrainedTransformer(
    Transformer,
    PyTorchModelHubMixin,
    library_name="adaptive-span",
    coders={ModelConfig: (asdict, lambda values: from_dict(values, ModelConfig, "config.json", "model."))},
):
    """A `Transformer` with `save_pretrained`, `push_to_hub` and `from_pretrained`."""

    def __init__(self, model: ModelConfig, vocab_size: int):  # the names of config.json
        super().__init__(model, vocab_size)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        """Load every weight. The library's default would leave those that the file lacks at random numbers."""
        try:
            return super()._load_as_safetensor(model, model_file, map_location, strict=True)
        except (SafetensorError, RuntimeError) as error:
            lacks = " ".join(str(error).split())
            raise UserError(f"{model_file} does not hold the weights of its config.json ({lacks})") from None

    @classmethod
    def _load_as_pickle(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        raise UserError(f"{model_file} is a pickle, and a repository of this project's models holds model.safetensors")


def from_checkpoint(path: Path) -> PretrainedTransformer:
    """Return the model of a checkpoint, this project's or the original's.

    Raises:
        UserError: The file cannot be read, or holds weights that are not finite.
    """
    state = original.load(path)
    files.check_finite(state["model"], path)
    model = PretrainedTransformer(config_of(state, path), state["vocab_size"])
    model.load_state_dict(state["model"])
    return model
