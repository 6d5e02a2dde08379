"""Record with what a run was trained: versions, machine, commit and command, a line per start."""

import os
import platform
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from adaptive_span.hardware.machine import processor
from adaptive_span.reporting.run_directory import ENVIRONMENT
from adaptive_span.storage import strict_json
from adaptive_span.storage.source_code import commit_and_change
from adaptive_span.storage.writing import explain_disk_errors
from adaptive_span.terminal.plain_text import masked, without_secrets

PACKAGES = ("adaptive-span", "torch", "numpy", "hydra-core", "omegaconf", "triton", "wandb")


def record(directory: Path, command: Sequence[str], step: int, processes: int, device: torch.device) -> None:
    """Add a line to the file in a run's directory. A step of 0 begins the run, a later one resumes it."""
    commit, changed = commit_and_change()
    line = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "step": step,
        "command": masked(shlex.join(command)),
        "commit": commit,
        "changed": changed,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "device": device.type,
        "processes": processes,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "cpu": processor(),
        "system": platform.platform(),
    }
    path = directory / ENVIRONMENT
    with explain_disk_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(strict_json.dumps(without_secrets(line)) + "\n")


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Have torch take only such operations on a GPU whose result is always the same to the last bit."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a process first multiplies on a GPU
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
