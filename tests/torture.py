"""Kill a training at random instants, resume it until it is done, and compare it with one that nothing has disturbed.

    python -m tests.torture --kills 50 [--processes 1|2] [--seed S]

A training here is all that a first command does: a download from a server on this machine, a corpus build, steps with
checkpoints, and scores. SIGKILL goes to all of its processes at once, at a random time or as soon as a file is half
written. At the end every file that the two trainings have left must be the same, but for times.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, cycle
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.conftest import ENVIRONMENT, ROOT, SMALL, TIMES

MARK = "ADAPTIVE_SPAN_TORTURE"  # an environment variable that all processes of a training inherit
AIMS = (".part", ".building", ".writing")  # what is half written: a download, a corpus, a checkpoint or a table
TEXT = random.Random(0).randbytes(1 << 21).translate(bytes(32 + byte % 64 for byte in range(256)))
SPLIT = "data.split=[2080000,9000,8000]"
SETTINGS = [*SMALL, "train.steps=120", "model.dropout=0.2", "checkpoint.every=5", "log.every=1", "run.dir=run"]


class SlowServer(BaseHTTPRequestHandler):
    """Gives the text, or what is missing of it, in pieces: there is time to be killed in."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        body = TEXT[int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0 :]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            for start in range(0, len(body), 1 << 17):
                self.wfile.write(body[start : start + (1 << 17)])
                time.sleep(0.02)
        except ConnectionError:  # the training was killed
            return

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowServer) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/text"
        server.shutdown()


class Training:
    """One training, in a directory of its own."""

    def __init__(self, directory: Path, url: str, processes: int):
        directory.mkdir()
        self.directory = directory
        checksum = hashlib.sha256(TEXT).hexdigest()
        data = ["data=enwik8", SPLIT, f"data.urls=['{url}']", f"data.size={len(TEXT)}", f"data.sha256={checksum}"]
        self.words = [sys.executable, str(ROOT / "launch.py"), *data, *SETTINGS, f"hardware.processes={processes}"]

    def start(self) -> subprocess.Popen:
        with (self.directory / "log").open("a") as log:
            environment = ENVIRONMENT | {MARK: str(self.directory)}
            return subprocess.Popen(
                self.words, cwd=self.directory, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def finish(self) -> float:
        """Run the command to its end, and return the seconds it took."""
        started = time.monotonic()
        if self.start().wait() != 0:
            raise SystemExit(f"the command failed:\n{(self.directory / 'log').read_text()}")
        return time.monotonic() - started

    def killed(self, aim: str | None, seconds: float) -> bool:
        """Start the command and kill it; return whether it was still running by then."""
        running, until = self.start(), time.monotonic() + seconds
        while running.poll() is None and not (any(self.half(aim)) if aim else time.monotonic() > until):
            time.sleep(0.001)
        if aim:
            time.sleep(random.uniform(0, 0.005))
        was_running = running.poll() is None
        if was_running:
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        return was_running

    def half(self, *endings: str) -> Iterator[Path]:
        """What is half written."""
        for folder in (self.directory / "data", self.directory / "data" / "downloads", self.directory / "run"):
            yield from (path for path in folder.glob("*") if path.suffix in endings)
        yield from (path for path in self.directory.glob("run/*/*") if path.suffix in endings)


def difference(one: Any, other: Any, place: str = "") -> str | None:
    """Return where two things first differ, or None."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        pairs = [(f"{place}.{key}", one[key], other[key]) for key in one if key not in TIMES]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = [(f"{place}[{index}]", *pair) for index, pair in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return None if torch.equal(one, other) else place
    else:
        return None if one == other else f"{place}: {one!r} and {other!r}"
    return next((found for name, a, b in pairs if (found := difference(a, b, name))), None)


def content(path: Path) -> Any:
    match path.suffix:
        case ".pt":
            return torch.load(path, weights_only=True)
        case ".json":
            return json.loads(path.read_text())
        case ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
        case _:
            return path.read_bytes()


def files(training: Training) -> dict[str, Any]:
    paths = [
        path
        for path in training.directory.rglob("*")
        if path.is_file() and path.name not in ("log", "environment.jsonl")
    ]
    return {str(path.relative_to(training.directory)): content(path) for path in sorted(paths)}


def left_running() -> list[psutil.Process]:
    """Processes of any training of this run of the script."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(os.getpid()) in process.environ().get(MARK, "").split("-"):
                found.append(process)
        except psutil.Error:  # it has ended, or is somebody else's
            continue
    return found


def torture(kills: int, processes: list[int], home: Path, url: str) -> None:
    straight, seconds = {}, {}
    for number in processes:
        straight[number] = Training(home / f"straight-{number}-{os.getpid()}", url, number)
        seconds[number] = straight[number].finish()
        print(f"undisturbed, {number} process(es): {seconds[number]:.1f} s", flush=True)
    aims, done = cycle([".part", None, ".writing", ".building", ".writing", None]), 0
    for life, number in zip(count(1), cycle(processes), strict=False):
        training = Training(home / f"life-{life}-{os.getpid()}", url, number)
        told = []
        for _ in range(min(3, kills - done)):
            aim = next(aims)
            if training.killed(aim, random.uniform(0, seconds[number])):
                told.append(aim or "at random")
        training.finish()
        if found := difference(files(straight[number]), files(training)):
            raise SystemExit(f"life {life} with {number} process(es), killed {told}, differs: {found}")
        done += len(told)
        print(f"life {life}, {number} process(es): {done} of {kills} kills ({', '.join(told)}); same bits", flush=True)
        if done >= kills:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--processes", type=int, choices=(1, 2), help="default: 1 and 2 in turns")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as home, serving() as url:
        torture(arguments.kills, [arguments.processes] if arguments.processes else [1, 2], Path(home), url)
        half = [path for ending in AIMS for path in Path(home).rglob(f"*{ending}")]
    if half or (running := left_running()):
        raise SystemExit(f"left behind: {half or running}")
    print(f"{arguments.kills} kills, and nothing left behind")


if __name__ == "__main__":
    main()
