"""Change real files at random and read them: only `UserError` may come out, in little time and memory.

    python -m tests.fuzz --inputs 10000 [--only checkpoint] [--seed 1]

Each input depends on the seed, its reader's name and its number alone; what fails is kept in the folder fuzz-failures.
"""

import argparse
import gzip
import io
import json
import lzma
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch
import yaml

from adaptive_span.checkpoint import files, loading, stored_model
from adaptive_span.config.schema import Config
from adaptive_span.data import source
from adaptive_span.errors import UserError
from adaptive_span.launch.slurm import status
from adaptive_span.reporting import run_record, scores
from adaptive_span.reporting.console import all_scores_table
from adaptive_span.reporting.page import build as build_page
from adaptive_span.reporting.page import chosen
from adaptive_span.reporting.run_record import Start, TokenLosses
from adaptive_span.reporting.tracking import METRICS, logged
from adaptive_span.storage.stored import from_dict, read_yaml
from tests import strangers

SECONDS, GIGABYTES = 30, 2  # of one input, and of the process
STRANGE = [
    b"",
    b"\0",
    b"\xff" * 8,
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b"\x1b[2J",
    b"9" * 5000,
    b"[" * 5000,
]
PLACES = {
    "jobs": "slurm/jobs.json",
    "scores": "evaluation.json",
    "table": "metrics.jsonl",
    "page of numbers": "metrics.jsonl",
    "page of scores": "evaluation.json",
    "page of losses": "token_losses.json",
    "page of starts": "environment.jsonl",
}  # read by folder


def checkpoint_file(legacy: bool = False, step: bool = False) -> bytes:
    """Return a real checkpoint: one of this project, or of the original's form."""
    file = io.BytesIO()
    state = strangers.training_state() if step else strangers.original() if legacy else strangers.state()
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def zipped(member: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return file.getvalue()


def repickled(pickled: bytes) -> bytes:
    """Return a checkpoint whose checksums are right and whose pickle is this."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(checkpoint_file())) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return file.getvalue()


def pickle_of(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))


def unpack(path: Path) -> None:
    with source.opened(path) as text:
        while text.read(1 << 20):
            pass


def build(path: Path) -> None:
    stored_model.model_of(loading.load(path), path, torch.device("cpu"))


def record(path: Path) -> None:
    run = run_record.read(path.parent)
    run.seconds(), run.spans(), run.exact


def page(path: Path) -> None:
    if path.name != METRICS:
        (path.parent / METRICS).write_bytes(LINES)
    build_page.page(chosen.read([path.parent]))


TEXT = Path(random.__file__).read_bytes()[:20000]
LINE = {"step": 1, "tokens_per_second": 2.0, "span/mean": 3.0, "valid/bpc": 5.0, "spans": [[1.0, 2.0], [1.0, 2.0]]}
LINES = "".join(json.dumps(LINE | {"step": step}) + "\n" for step in range(1, 9)).encode()
JOB = asdict(status.SubmittedJob("1_0", "runs/a", "runs/a/slurm", 100))
CONFIG = yaml.safe_dump(strangers.state()["config"]).encode()
LOSSES = TokenLosses("valid", "exact", 1, "byte", ["a", "é"], [[], [1.0, 2.0]])
START = Start("now", 0, "launch.py", None, None, "3", {"torch": "2"}, "cpu", 1, [], None, "cpu", "Linux")
SCORED = {"step": 1, "spans": [[1.0]], "splits": {"valid": {"bpc": 1.0}}, "flops_per_token": {"learned_spans": 5.0}}
ALL_SCORES = json.dumps({"protocol": "exact", **SCORED, "average": SCORED, "others": {"x": SCORED}}).encode()
# The name of each: the ending of its file, a real one, what is done after it was changed, what reads it.
TARGETS: dict[str, tuple[str, bytes, Callable[[bytes], bytes], Callable[[Path], object]]] = {
    "checkpoint": (".pt", checkpoint_file(), bytes, build),
    "pickle": (".pt", pickle_of(checkpoint_file()), repickled, build),
    "training": (".pt", checkpoint_file(step=True), bytes, lambda path: files.newest(path.parent)),
    "legacy": (".pt", checkpoint_file(legacy=True), bytes, loading.load),
    "config": (".yaml", CONFIG, bytes, lambda path: from_dict(read_yaml(path), Config, path)),
    "metrics": (".jsonl", LINES, bytes, logged),
    "table": (".jsonl", LINES, bytes, record),
    "scores": (".json", ALL_SCORES, bytes, lambda path: all_scores_table(scores.summaries(path.parent), path)),
    "page of numbers": (".jsonl", LINES, bytes, page),
    "page of scores": (".json", ALL_SCORES, bytes, page),
    "page of losses": (".json", json.dumps(asdict(LOSSES)).encode(), bytes, page),
    "page of starts": (".jsonl", json.dumps(asdict(START)).encode() + b"\n", bytes, page),
    "jobs": (".json", json.dumps([JOB, JOB]).encode(), bytes, lambda path: status.read(path.parent.parent)),
    "zip": (".zip", zipped("text", TEXT), bytes, unpack),
    "gz": (".gz", gzip.compress(TEXT, mtime=0), bytes, unpack),
    "xz": (".xz", lzma.compress(TEXT), bytes, unpack),
}


def changed(content: bytes, chance: random.Random) -> bytes:
    """Return it with one to four changes: bits, a cut, a piece gone, moved, or replaced by something strange."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        size = len(made)
        start = chance.randrange(size + 1)
        end = min(size, start + chance.choice([1, 2, 4, 8, 100, 1000]))
        match chance.randrange(6):
            case 0 | 1:
                for _ in range(chance.randint(1, 8)):
                    if size:
                        made[chance.randrange(size)] ^= 1 << chance.randrange(8)
            case 2:
                del made[start : end if chance.random() < 0.8 else size]
            case 3:
                made[start:start] = made[(other := chance.randrange(size + 1)) : other + end - start]
            case 4:
                made[start:end] = chance.choice(STRANGE)
            case 5:
                made[start:end] = chance.randbytes(end - start)
    return bytes(made)


def fuzz(name: str, inputs: int, seed: int, directory: Path) -> list[int]:
    """Return the numbers of the inputs from which something else than `UserError` came out."""
    ending, content, finish, read = TARGETS[name]
    path = directory / PLACES.get(name, f"step_00000001{ending}")
    path.parent.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_bytes(CONFIG)
    signal.signal(signal.SIGALRM, _too_long)
    failed = []
    for number in range(inputs):
        given = finish(changed(content, random.Random(f"{seed} {name} {number}")))
        path.write_bytes(given)
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings(action="error"):
                read(path)
        except UserError:
            pass
        except Exception:
            failed.append(number)
            Path("fuzz-failures").mkdir(exist_ok=True)
            Path("fuzz-failures", f"{name}-{seed}-{number}{ending}").write_bytes(given)
            traceback.print_exc()
        finally:
            signal.alarm(0)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2  # KiB → GiB
    assert used < GIGABYTES, f"{name} has used {used:.1f} GiB"
    return failed


def _too_long(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"more than {SECONDS} seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=TARGETS)
    arguments = parser.parse_args()
    bad = False
    for name in [arguments.only] if arguments.only else TARGETS:
        with tempfile.TemporaryDirectory() as directory:
            failed = fuzz(name, arguments.inputs, arguments.seed, Path(directory))
        print(f"{name}: seed {arguments.seed}, {arguments.inputs} inputs, failed: {failed or 'none'}", flush=True)
        bad = bad or bool(failed)
    sys.exit(bad)


if __name__ == "__main__":
    main()
