"""Read a model in whatever form it is kept: this project's checkpoint, the original's, or an exported folder."""

from pathlib import Path

import torch

from adaptive_span.checkpoint import exported, files, original
from adaptive_span.checkpoint.paths import is_exported
from adaptive_span.checkpoint.stored_model import model_of
from adaptive_span.data.vocabulary import Vocabulary, unpack
from adaptive_span.model.transformer import Transformer
from adaptive_span.storage import tensor_file


def load(source: Path) -> files.State:
    """Return a checkpoint file, also one of the original project, or an exported folder, as a checkpoint.

    Raises:
        UserError: It cannot be read.
    """
    if is_exported(source):
        return exported.read(source)
    state = tensor_file.read(source)
    return original.convert(state, source) if original.is_original(state) else files.check(state, source, files.WEIGHTS)


def load_model(source: str | Path, device: str | torch.device = "cpu") -> tuple[Transformer, Vocabulary | None]:
    """Return a trained model, ready to predict, and the symbols that its token ids stand for.

    Args:
        source: A checkpoint file, such as `RUN/checkpoints/best.pt`, also one of the original project; or a folder that
            `adaptive-span export` wrote.
        device: Where to put it.

    Returns:
        The model, without dropout, and its vocabulary; None where the file does not hold one.

    Raises:
        UserError: It cannot be read, or is damaged.
    """
    state = load(Path(source))
    model = model_of(state, Path(source), torch.device(device)).eval()
    packed = state.get("vocabulary")
    return model, None if packed is None else unpack(packed, state["vocab_size"], str(source))
