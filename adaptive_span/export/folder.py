"""Write a model as a folder that `transformers` loads, whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from adaptive_span.checkpoint import exported, loading
from adaptive_span.checkpoint.matching import vocabulary_for
from adaptive_span.checkpoint.paths import CHECKPOINTS, best_path, is_exported
from adaptive_span.checkpoint.stored_model import model_of
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.registry import is_exchangeable
from adaptive_span.errors import UserError
from adaptive_span.export import card
from adaptive_span.storage.writing import WRITING, explain_disk_errors

CODE = Path(__file__).parent / "hub"


def export(source: Path, folder: Path, data: DataConfig, numbering: str | None = None) -> None:
    """Write the weights, their description, tokenizer, code, scores and model card.

    Args:
        source: The directory of a run, whose best weights are taken; a checkpoint file, also one of the original
            project; or an exported folder.
        folder: Where to write; it must not exist, or be empty.
        data: The text that weights without a vocabulary were trained on; nameless where none is named.
        numbering: The key of that name.

    Raises:
        UserError: The source cannot be read, the folder cannot be written, or the extra `export` is missing.
    """
    try:
        from adaptive_span.export import tokenizer
    except ModuleNotFoundError as missing:
        raise UserError(f"there is no {missing.name} here; pip install 'adaptive-span[export]' brings it") from None

    refuse_occupied(folder)
    is_run = (source / CHECKPOINTS).is_dir() and not is_exported(source)
    file = best_path(source) if is_run else source
    state = loading.load(file)
    model = model_of(state, file, torch.device("cpu"))
    if not is_exchangeable(model.config.attention):
        raise UserError(
            f"{file} was trained with model.attention={model.config.attention}, which the exported code does not know; "
            f"register it with exchangeable=True if it computes what the project's own does"
        )
    vocabulary = vocabulary_for(state, str(file), data, model.config.reads_by_frequency, numbering)
    if "vocabulary" not in state:  # then the text that was named is that of the training
        state = state | {"config": state["config"] | {"data": asdict(data)}}
    scores = card.scores_beside(file, state["step"])
    with written_whole(folder) as building:
        exported.write(state, model, vocabulary, building, file)
        tokenizer.write(vocabulary, building)
        for path in CODE.glob("*_adaptive_span.py"):
            shutil.copyfile(path, building / path.name)
        card.write(state, model, vocabulary.level, scores, building, folder.resolve().name)


def refuse_occupied(folder: Path) -> None:
    """Refuse a folder that holds something, or is none.

    Raises:
        UserError: It is so.
    """
    if folder.is_symlink() or folder.exists():
        if not folder.is_dir():
            raise UserError(f"{folder} is a file; give a folder that does not exist yet")
        if any(folder.iterdir()):
            raise UserError(f"the folder {folder} is not empty; give one that does not exist yet, or empty it")


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yield a folder beside the wanted one, which takes its place once all is written, and goes if anything fails.

    Raises:
        UserError: The disk does not take it.
    """
    building = folder.resolve().with_name(folder.resolve().name + WRITING)
    try:
        with explain_disk_errors(folder):
            shutil.rmtree(building, ignore_errors=True)  # what a killed process left
            building.mkdir(parents=True)
            yield building
            building.replace(folder.resolve())
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
