"""Run many tiny steps, and see that neither memory nor the time of a step grows with them.

    python -m tests.endurance [--steps 20000]

Prints both as the run goes, and fails if memory grows by more than a few MB after its first quarter.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.conftest import ENVIRONMENT, ROOT, SMALL

TOKENS = 8 * 16  # of a step
GROWTH = 8.0  # MB


def endure(steps: int, home: Path) -> list[float]:
    """Return the resident memory at each twentieth of a run, in MB."""
    for split in ("train", "valid", "test"):
        (home / f"{split}.txt").write_bytes(Path(subprocess.__file__).read_bytes())
    every = steps // 20
    settings = [f"train.steps={steps}", f"log.every={every}", f"validation.every={every}", f"checkpoint.every={every}"]
    words = [
        sys.executable,
        str(ROOT / "launch.py"),
        "data=files",
        f"data.path={home}",
        *SMALL,
        *settings,
        "run.dir=run",
    ]
    memory: list[float] = []
    with subprocess.Popen(words, cwd=home, stdout=subprocess.DEVNULL, env=ENVIRONMENT) as run:
        metrics = home / "run" / "metrics.jsonl"
        while len(memory) < 20:
            assert run.poll() is None, "the run has failed"
            time.sleep(0.01)
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            if len(lines) > len(memory):
                memory.append(psutil.Process(run.pid).memory_info().rss / 1e6)
                line = json.loads(lines[-1])
                milliseconds = 1000 * TOKENS / line["tokens_per_second"]
                print(f"step {line['step']}: {milliseconds:.2f} ms per step, {memory[-1]:.1f} MB", flush=True)
        run.kill()
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    with tempfile.TemporaryDirectory() as home:
        memory = endure(parser.parse_args().steps, Path(home))
    later = memory[len(memory) // 4 :]
    print(f"memory from a quarter of the run on: {min(later):.1f} to {max(later):.1f} MB")
    if later[-1] - later[0] > GROWTH:
        raise SystemExit(f"memory has grown from {later[0]:.1f} to {later[-1]:.1f} MB")


if __name__ == "__main__":
    main()
