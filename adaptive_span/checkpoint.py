"""Everything needed to go on as if nothing had happened, in one file a checkpoint, written whole or not at all.

A run's `checkpoints/` holds `step_00001000.pt` (the newest `checkpoint.keep` of them: whole training states) and
`best.pt` (the weights that scored best on the validation part, without what only a training needs).
"""

import os
import random
import zipfile
import zlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptive_span.errors import UserError, first_line
from adaptive_span.run_directory import step_path, steps

State = dict[str, Any]


def save(state: State, path: Path) -> None:
    """Atomically: a reader, or a crash, finds the old file or the new one, never a part of one."""
    temporary = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise UserError(
            f"the checkpoint {path} cannot be written ({error}); free some space, or take another run.dir"
        ) from error


def load(path: Path) -> State:
    """One checkpoint, every byte checked; no code in the file is run. Raises `UserError` where it is damaged."""
    if not path.is_file():
        what = "which is a folder" if path.is_dir() else "nor anything else of that name"
        raise UserError(f"there is no checkpoint {path}, {what}; a run's are in its folder checkpoints")
    if not os.access(path, os.R_OK):
        raise UserError(f"the checkpoint {path} may not be read (permission denied)")
    with open(path, "rb") as file:
        start = file.read(2)
    damaged = None
    if start != b"PK" and start[:1] != b"\x80":  # a zip file or, long ago, a pickle
        raise UserError(f"{path} is no checkpoint")
    try:
        if start == b"PK":
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # torch.load itself does not look at the checksums
        if damaged is None:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(state, dict) and "model" in state:
                return state
            raise UserError(f"{path} is no checkpoint: it holds no 'model'")
        reason = f"the checksum of {damaged} is wrong"
    except UnpicklingError as error:
        if "Unsupported global" in str(error) or "GLOBAL" in str(error):
            raise UserError(
                f"{path} asks to run code when it is loaded, which was refused; a checkpoint holds tensors and plain "
                f"values alone"
            ) from None
        reason = first_line(error)
    except (zipfile.BadZipFile, zlib.error, LookupError, RuntimeError, EOFError, ValueError) as error:
        reason = first_line(error)
    raise UserError(f"the checkpoint {path} is damaged: {reason}")


def check_fits(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Raise `UserError` naming the first tensor that the model lacks, or has in another shape."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in wanted | found:
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{source} does not fit this model: {name} has shape {found.get(name, 'missing')} there and "
                f"{wanted.get(name, 'missing')} here; give the model and data settings that it was trained with"
            )


def newest(directory: Path) -> tuple[State | None, list[str]]:
    """The newest training state that can be read, and a sentence for each newer one that can't."""
    problems: list[str] = []
    for path in steps(directory):
        try:
            return load(path), problems
        except UserError as error:
            problems.append(f"{error}; going on from the one before")
    if problems:
        raise UserError(f"{problems[0].removesuffix('; going on from the one before')}, and there is none before it; "
                        f"delete {directory} to start afresh")  # fmt: skip
    return None, []


def prune(directory: Path, keep: int, step: int) -> None:
    """Leave the newest ones up to `step`; what is later could not be read, and what is half written never will be."""
    good = [path for path in steps(directory) if path <= step_path(directory, step)]
    for path in {*steps(directory), *directory.glob("*.writing")}.difference(good[:keep]):
        path.unlink()


def seed(number: int) -> None:
    """Every generator that this process may draw from, from a fixed start."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


def random_state(device: torch.device) -> State:
    """Where those generators are."""
    algorithm, words, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (algorithm, torch.from_numpy(np.asarray(words).astype(np.int64)), position, has_gauss, cached),
    }


def restore_random_state(state: State, device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    random.setstate(state["python"])
    algorithm, words, *rest = state["numpy"]
    np.random.set_state((algorithm, words.numpy().astype(np.uint32), *rest))
