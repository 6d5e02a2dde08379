"""One private cluster for all tests; where it can't be started they are skipped, or fail where CI demands them."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, ROOT, SMALL, Finished
from tests.slurm import cluster

HARDWARE = "hardware=slurm hardware.device=cpu hardware.precision=fp32 hardware.processes=1 hardware.cpus=1".split()


class Cluster:
    """What the tests do with it: submit, look, wait."""

    def __init__(
        self, environment: dict[str, str], away: Callable[[], AbstractContextManager[None]], text: Path, directory: Path
    ):
        self.environment, self.away, self.text, self.directory = environment, away, text, directory

    def words(self, *settings: str, tree: Path = ROOT) -> list[str]:
        """Of `launch.py` for a short training on that text, on one core of one node."""
        data = ["data=files", f"data.path={self.text}", f"data.directory={self.directory / 'data'}"]
        small = [word for word in SMALL if not word.startswith("hardware=")]
        flags = [word for word in settings if word == "-m"]
        rest = [word for word in settings if word != "-m"]
        return [sys.executable, str(tree / "launch.py"), *flags, *data, *small, *HARDWARE, *rest]

    def launch(self, *settings: str, tree: Path = ROOT, ok: bool = True) -> Finished:
        """Submit, and have the prompt back."""
        return self.run(*self.words(*settings, tree=tree), ok=ok)

    def run(self, *words: str, ok: bool = True) -> Finished:
        result = subprocess.run(
            words, cwd=self.directory, env=self.environment, capture_output=True, text=True, timeout=240
        )
        assert (result.returncode == 0) == ok, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result

    def ask(self, *words: str) -> str:
        return self.run(*words).stdout.strip()

    def account(self, job: str) -> str:
        """The state of a job in SLURM's own accounts."""
        return self.ask("sacct", "-X", "-n", "-P", "-j", job, "-o", "State").split(" ")[0]

    def until(self, holds: Callable[[], object], what: Callable[[], object] = str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, what()
            time.sleep(0.1)

    def until_step(self, run: str, step: int) -> None:
        """Until a run has logged a step after that one."""
        path = self.directory / run / "metrics.jsonl"

        def logs() -> str:
            return "\n".join(log.read_text() for log in (self.directory / run / "slurm").glob("*.out"))

        self.until(
            lambda: path.exists() and any(f'{{"step": {n},' in path.read_text() for n in range(step, step + 50)), logs
        )

    def until_ended(self, run: str, job: str, state: str) -> None:
        def logs() -> str:
            found = "\n".join(log.read_text() for log in (self.directory / run / "slurm").glob("*.out"))
            return f"{self.account(job)}\n{self.ask('squeue')}\n{found}"

        self.until(lambda: self.account(job) == state and job not in self.ask("squeue", "-h", "-o", "%i").split(), logs)


def job_of(launched: Finished) -> str:
    return launched.stdout.split("submitted job")[1].removeprefix("s").split()[0].rstrip(":").split("_")[0]


@pytest.fixture(scope="session")
def slurm(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = cluster.missing()
    if reason:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{reason}; then python -m pytest tests/slurm")
    with tempfile.TemporaryDirectory(prefix="slurm") as root, cluster.cluster(Path(root)) as (environment, away):
        yield Cluster(ENVIRONMENT | environment, away, text, tmp_path_factory.mktemp("slurm"))
