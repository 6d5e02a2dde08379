"""What several test files share: real processes and a small real text."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("the same examples every time", derandomize=True, deadline=None)
settings.load_profile("the same examples every time")


# More threads would make models as small as these slower, and a busy machine much slower. What is tested in a process
# of its own runs as it would for a user.
os.environ["OMP_NUM_THREADS"] = "1"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def pytest_configure(config: pytest.Config) -> None:
    """Triton's kernels are interpreted, on the CPU, but in the tests that ask for a GPU; before triton is imported."""
    if config.option.markexpr != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Machines with GPUs may lack what the other tests import: with `-m gpu` only files with such tests are read."""
    if config.option.markexpr != "gpu" or collection_path.suffix != ".py":
        return None
    return "mark.gpu" not in collection_path.read_text(encoding="utf-8") or None


ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
Finished = subprocess.CompletedProcess[str]

# What differs from run to run: `metrics.jsonl` keeps times, and the memory that the process held.
TIMES = ("tokens_per_second", "ms_per_step", "peak_memory_mib", "mfu")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The logged lines without what differs from run to run."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


# A training of a second or two.
SMALL = (
    "model.num_layers=2 model.hidden_size=32 model.ffn_size=64 model.num_heads=4 model.max_span=96 model.block_size=16 "
    "train.steps=24 train.batch_size=8 train.warmup_steps=4 train.span_penalty=0.0001 "
    "validation.every=12 validation.blocks=4 checkpoint.every=10 log.every=5 tracking=none hardware=cpu"
).split()


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.txt, valid.txt, test.txt: pieces of a source file that every Python has."""
    directory = tmp_path_factory.mktemp("text")
    source = Path(subprocess.__file__).read_bytes()
    for name, start, size in (("train", 0, 40000), ("valid", 40000, 5000), ("test", 45000, 4001)):
        (directory / f"{name}.txt").write_bytes(source[start : start + size])
    return directory


@pytest.fixture
def command(text: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The words of `launch.py` for a short training on that text, in `tmp_path`."""

    def words(*settings: str, program: tuple[str, ...] = (sys.executable,)) -> list[str]:
        data = ["data=files", f"data.path={text}", f"data.directory={tmp_path / 'data'}"]
        return [*program, str(ROOT / "launch.py"), *data, *SMALL, *settings]

    return words


@pytest.fixture
def launch(command: Callable[..., list[str]], tmp_path: Path) -> Callable[..., Finished]:
    """Run `launch.py` on that text and wait for it."""

    def run(*settings: str, ok: bool = True, program: tuple[str, ...] = (sys.executable,)) -> Finished:
        return finish(command(*settings, program=program), tmp_path, ok)

    return run


def finish(words: list[str], directory: Path, ok: bool = True) -> Finished:
    """Run a command to its end; it must succeed, or, where that is what is tested, fail."""
    result = subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert (result.returncode == 0) == ok, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def sentence(result: Finished) -> str:
    """The one sentence in which a command refused what it was given."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")
