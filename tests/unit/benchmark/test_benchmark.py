"""The benchmarks run on a machine that has torch, numpy and PyYAML alone, and say how the ways compare."""

import json
import sys

import pytest

from tests.conftest import ROOT, finish

# None in sys.modules makes an import fail.
BARE = """
import runpy, sys
sys.modules |= dict.fromkeys(("hydra", "omegaconf", "wandb", "submitit", "rich", "pooch", "filelock", "matplotlib"))
sys.argv[0] = "benchmark"
runpy.run_module("adaptive_span.benchmark", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("what", "ways"),
    [
        ("attention", ["dense", "banded"]),
        ("attention --layer 4 --dropout 0.1", ["dense", "banded"]),
        ("attention --layer 4 --dtype bf16", ["dense", "banded"]),
        ("step", ["dense", "banded", "none"]),
        ("step --dtype bf16", ["dense", "banded", "none", "dense fp32"]),
        ("evaluate", ["dense", "banded", "dense training"]),
    ],
)
def test_a_benchmark_compares_the_ways_that_run_here(what, ways, tmp_path):
    words = "--model tiny --repeats 1 --cpu --attention dense banded --no-memory --json".split()
    command = [sys.executable, "-c", BARE, *what.split(), *words, str(tmp_path / "found.json")]
    out = finish(command, ROOT).stdout
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert list(rows) == ways
    assert all(row["ms"] > 0 for row in rows.values())
    assert all(way in out for way in ways)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("attention --model tiny --layer 5", "--layer 5 is not one of the 4 of --model tiny"),
        ("step --layer 1", "--layer is for attention, not for step"),
        ("loop --dropout 0.1", "--dropout does not go with loop"),
        ("step --repeats 0", "--repeats 0 must be at least 1"),
        ("step --batch-size 99999999999", "--batch-size 99999999999 must be at most 2147483647"),
        ("step --json /nowhere/x", "there is no folder /nowhere for /nowhere/x"),
    ],
)
def test_what_it_cannot_measure_is_told_before_it_measures(words, told, tmp_path):
    result = finish([sys.executable, "-m", "adaptive_span.benchmark", *words.split()], tmp_path, ok=False)
    assert result.stderr.splitlines()[-1] == f"adaptive-span benchmark: error: {told}"
