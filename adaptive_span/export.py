"""Models as a folder or a repository of the Hugging Face Hub: model.safetensors and config.json.

    python -m adaptive_span.export CHECKPOINT DIR

Needs `pip install 'adaptive-span[export]'`; nothing else in the package does.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import PyTorchModelHubMixin

from adaptive_span import checkpoint, published
from adaptive_span.config import ModelConfig
from adaptive_span.console import say
from adaptive_span.errors import UserError
from adaptive_span.model import Transformer
from adaptive_span.program import exit_codes
from adaptive_span.stored import from_dict
from adaptive_span.stored_model import config_of


class PretrainedTransformer(
    Transformer,
    PyTorchModelHubMixin,
    library_name="adaptive-span",
    coders={ModelConfig: (asdict, lambda values: from_dict(values, ModelConfig, "config.json", "model."))},
):
    """A `Transformer` with `save_pretrained`, `push_to_hub` and `from_pretrained`."""

    def __init__(self, model: ModelConfig, vocab_size: int):  # the names of config.json
        super().__init__(model, vocab_size)


def from_checkpoint(path: Path) -> PretrainedTransformer:
    """The model of a checkpoint, this project's or the original's."""
    state = published.load(path)
    checkpoint.check_finite(state["model"], path)
    model = PretrainedTransformer(config_of(state, path), state["vocab_size"])
    model.load_state_dict(state["model"])
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("directory", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.directory.is_file():
        raise UserError(f"{arguments.directory} is a file; give a folder")
    from_checkpoint(arguments.checkpoint).save_pretrained(arguments.directory)
    say(f"{arguments.directory}: PretrainedTransformer.from_pretrained({str(arguments.directory)!r}) reads it")


if __name__ == "__main__":
    with exit_codes():
        main()
