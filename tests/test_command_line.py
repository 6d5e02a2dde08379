"""What people type, and the code that a program ends with."""

import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ENVIRONMENT, finish

PROGRAMS = {  # with what is wrong about each command
    "adaptive_span.sweep nowhere": "error: no run below nowhere has begun",
    "adaptive_span.published nowhere out": "error: there is no checkpoint nowhere",
    "adaptive_span.published download enwik9": "error: there is no published checkpoint 'enwik9'",
    "adaptive_span.export nowhere out": "error: there is no checkpoint nowhere",
    "adaptive_span.slurm status nowhere": "error: nothing has been submitted from",
    "adaptive_span.benchmark nothing": "python -m adaptive_span.benchmark: error: argument what",
}


@pytest.mark.parametrize("words", PROGRAMS)
def test_a_program_ends_with_2_where_its_user_is_wrong(words, tmp_path):
    result = finish([sys.executable, "-m", *words.split()], tmp_path, ok=False)
    assert (result.returncode, result.stderr.splitlines()[-1][: len(PROGRAMS[words])]) == (2, PROGRAMS[words])


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        ("UserError('no')", 2, "error: no\n"),
        ("KeyboardInterrupt", 130, ""),
        ("SystemExit(143)", 143, ""),
        ("ValueError('broken')", 1, "ValueError: broken\n"),
    ],
)
def test_how_a_program_ends(raised, code, told, tmp_path):
    text = f"from adaptive_span.program import *\nwith exit_codes():\n    raise {raised}"
    result = finish([sys.executable, "-c", text], tmp_path, ok=False)
    assert result.returncode == code
    assert result.stderr.endswith(told)
    assert ("Traceback" in result.stderr) == (code == 1)


def test_a_stopped_sweep_does_not_begin_its_next_run(command, tmp_path):
    log = tmp_path / "log"
    words = command("hydra.mode=MULTIRUN", "train.seed=1,2", "train.steps=100000", "run.dir=sweep")
    with log.open("w") as out:
        stopped = subprocess.Popen(words, cwd=tmp_path, stdout=out, stderr=out, env=ENVIRONMENT)
        while "step 5/" not in log.read_text():
            assert stopped.poll() is None, log.read_text()
            time.sleep(0.02)
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(60) == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["0"]
