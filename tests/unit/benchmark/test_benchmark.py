"""Every benchmark runs, those of attention on a machine that has torch, numpy and PyYAML alone."""

import json
import sys

import pytest

from adaptive_span.benchmark import figures
from adaptive_span.cli import benchmark
from tests.conftest import ROOT, finish

# One benchmark after the other, each line the words of one. None in sys.modules makes an import fail.
BARE = """
import runpy, sys
sys.modules |= dict.fromkeys(("hydra", "omegaconf", "wandb", "submitit", "rich", "pooch", "filelock", "matplotlib"))
for words in sys.argv[1].splitlines():
    sys.argv = ["benchmark", *words.split()]
    runpy.run_module("adaptive_span.benchmark", run_name="__main__")
"""
TINY = "--model tiny --repeats 1 --cpu"
WAYS = {
    "attention": ["dense", "banded"],
    "attention --layer 4 --dropout 0.1": ["dense", "banded"],
    "attention --layer 4 --dtype bf16": ["dense", "banded"],
    "step": ["dense", "banded", "none"],
    "step --dtype bf16": ["dense", "banded", "none", "dense fp32"],
    "evaluate": ["dense", "banded", "dense training"],
}


def measured(words, directory):
    """Return the rows that a benchmark leaves, measured in this process."""
    benchmark.main(f"{words} {TINY} --json {directory / 'found.json'}".split())
    return json.loads((directory / "found.json").read_text())["rows"]


def test_ways_are_compared_where_little_more_than_torch_is_installed(tmp_path):
    files = [tmp_path / f"{number}.json" for number in range(len(WAYS))]
    each = [
        f"{what} {TINY} --attention dense banded --no-memory --json {file}"
        for what, file in zip(WAYS, files, strict=True)
    ]
    out = finish([sys.executable, "-c", BARE, "\n".join(each)], ROOT).stdout
    for file, ways in zip(files, WAYS.values(), strict=True):
        rows = json.loads(file.read_text())["rows"]
        assert list(rows) == ways
        assert all(row["ms"] > 0 for row in rows.values())
        assert all(way in out for way in ways)


def test_memory_is_that_of_a_fresh_process(tmp_path):
    [row] = measured("attention --attention dense --layer 4", tmp_path).values()
    assert row["MiB"] > 0


def test_growth_is_measured_and_drawn(tmp_path):
    rows = measured("growth --attention banded --no-memory", tmp_path)
    means = [row["mean span"] for row in rows.values()]
    assert means == sorted(set(means))
    assert means[-1] == 512
    drawn = set()
    for size in (1, 2):  # of the memory, which --no-memory left out
        rows |= {name: row | {"MiB": size * row["mean span"] ** size} for name, row in rows.items()}
        figures.draw_growth(rows, "tiny", tmp_path / "growth.png")
        drawn.add((tmp_path / "growth.png").read_bytes())
    assert len(drawn) == 2


@pytest.mark.parametrize(
    ("what", "rows"),
    [
        ("loop", ["bare step", "training loop"]),
        ("processes", ["1 process", "2 processes"]),
        ("data", ["100 MB of bytes"]),
    ],
)
def test_what_the_project_adds(what, rows, tmp_path):
    found = measured(what, tmp_path)
    assert list(found) == rows
    assert all(row["ms"] > 0 for row in found.values())


def test_a_token_costs_what_its_spans_keep(tmp_path):
    learned, longest, maximum, linear = measured("generate", tmp_path).values()
    assert learned["cache, MB"] < longest["cache, MB"] < maximum["cache, MB"]
    assert linear["ms a token"] > 0
    assert linear["cache, MB"] is None
    first, last = measured("generate --tokens 60", tmp_path).values()
    assert first["cache, MB"] == last["cache, MB"] == learned["cache, MB"]


def test_a_model_of_transformers_is_measured_with_its_spans(tmp_path):
    run = f"--repeats 1 --cpu --json {tmp_path / 'found.json'}"
    benchmark.main(f"spans --context 512 --batch-size 1 {run}".split())
    whole, *kept = json.loads((tmp_path / "found.json").read_text())["rows"].values()
    assert whole["cache, %"] == 100
    assert [row["cache, %"] for row in kept] == pytest.approx([10, 10, 20, 20, 50, 50], abs=2)
    benchmark.main(f"fit --context 64 --no-memory {run}".split())
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert list(rows) == ["64, own", "64, at the start", "64, at 20 % of the cache"]
    assert all(row["ms"] > 0 and row["MiB"] is None for row in rows.values())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("attention --model tiny --layer 5", "--layer 5 is not one of the 4 of --model tiny"),
        ("step --layer 1", "--layer is for attention, not for step"),
        ("spans --context 10000", "--context 10000 must be at most 8192"),
        ("step --context 512", "--context is for spans and fit, not for step"),
        ("loop --dropout 0.1", "--dropout does not go with loop"),
        ("step --repeats 0", "--repeats 0 must be at least 1"),
        ("step --batch-size 99999999999", "--batch-size 99999999999 must be at most 2147483647"),
        ("step --json /nowhere/x", "there is no folder /nowhere for /nowhere/x"),
    ],
)
def test_what_it_cannot_measure_is_told_before_it_measures(words, told, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(words.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"adaptive-span benchmark: error: {told}"
