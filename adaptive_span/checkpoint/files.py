"""Save and load everything that a run needs to resume, one file per checkpoint, whole or not at all.

A run's `checkpoints/` holds `step_00001000.pt` (the newest `checkpoint.keep` of them: whole training states) and
`best.pt` (the weights that scored best on the validation part, without what only a training needs). With
`train.average` there is `best_average.pt` too: the same of the weights' moving average.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptive_span.checkpoint.paths import step_path, steps
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError
from adaptive_span.storage import tensor_file
from adaptive_span.storage.stored import from_dict, lookup
from adaptive_span.storage.writing import WRITING, atomic_write, explain_disk_errors

State = dict[str, Any]
FORMAT = 1  # of what is written; files without the key are older and are still read
WEIGHTS = {"config": dict, "vocab_size": int, "step": int, "model": dict[str, Tensor]}
TRAINING = WEIGHTS | {
    "optimizer": dict,
    "stream": dict,
    "cache": list[Tensor],
    "limits": list[list[int]],
    "processes": list[dict],  # type: ignore[type-arg]  # of tensors too, which `Any` does not admit
    "updates": int,
}
UNTIL_NOW = {"corpus": str | None, "best": float, "best_average": float, "run_id": str | None}


class NewerFormat(UserError):
    """A checkpoint of a later version. To skip it would lose what it holds."""


def save(state: State, path: Path) -> None:
    """Write a checkpoint atomically.

    Raises:
        UserError: The disk does not take it. An older file stays as it is.
    """
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save({"format": FORMAT} | state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch reports what this has led to
                raise error.__context__ from None
            raise


def load(path: Path) -> State:
    """Return one checkpoint of this project, checked.

    Raises:
        UserError: It is damaged or of another kind.
    """
    return check(tensor_file.read(path), path, WEIGHTS)


def check(state: Any, path: Path, wanted: dict[str, Any]) -> State:
    """Return what was read from a file if it holds what is wanted.

    Args:
        state: What was read.
        path: The file, for messages.
        wanted: Key → type.

    Raises:
        UserError: Something is missing or of another type.
    """
    if not isinstance(state, dict) or "model" not in state:
        raise UserError(f"{path} is no checkpoint: it holds no 'model'")
    written = lookup({"format": 0} | state, "format", int, path)
    if written > FORMAT:
        raise NewerFormat(
            f"{path} was written by a newer version of adaptive-span (format {written}; this one reads up to "
            f"{FORMAT}); update the package"
        )
    for key, hint in wanted.items():
        lookup(state, key, hint, path)
    for key in UNTIL_NOW.keys() & state.keys():
        lookup(state, key, UNTIL_NOW[key], path)
    from_dict(state["config"], Config, path)
    return state


def check_fits(model: nn.Module, tensors: dict[str, Tensor], source: Path | str) -> None:
    """Raise `UserError` naming the first tensor that the model lacks, or has in another shape."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in wanted | shapes:
        if wanted.get(name) != shapes.get(name):
            raise UserError(
                f"{source} does not fit this model: {name} has shape {shapes.get(name, 'missing')} there and "
                f"{wanted.get(name, 'missing')} here; give the model and data settings that it was trained with"
            )


def check_finite(tensors: dict[str, Tensor], source: Path | str) -> None:
    """Raise `UserError` naming the first tensor that holds a number which is not finite."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{source} holds weights that are no numbers: {name} is not finite; take an earlier one")


def newest(directory: Path) -> tuple[State | None, list[str]]:
    """Load the newest training state that can be read.

    Returns:
        The state, or None where there is none; and a sentence per newer file that cannot be read.

    Raises:
        UserError: There are files, but none can be read; or one is of a newer version.
    """
    problems: list[str] = []
    for path in steps(directory):
        try:
            return check(tensor_file.read(path), path, TRAINING), problems
        except NewerFormat:
            raise
        except UserError as error:
            problems.append(f"{error}; resuming from the one before")
    if problems:
        raise UserError(f"{problems[0].removesuffix('; resuming from the one before')}, and there is none before it; "
                        f"delete {directory} to start afresh")  # fmt: skip
    return None, []


def prune(directory: Path, keep: int, step: int) -> None:
    """Delete all training states but the newest ones up to a step.

    Later ones could not be read, and half-written ones never will be.
    """
    good = [path for path in steps(directory) if path <= step_path(directory, step)]
    with explain_disk_errors(directory):
        for path in {*steps(directory), *directory.glob(f"*{WRITING}")}.difference(good[:keep]):
            path.unlink()
