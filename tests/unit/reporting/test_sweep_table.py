"""A table of runs says what sets them apart, and fits a terminal of 80 columns."""

import csv
import json
import re
from dataclasses import replace
from functools import cache

import pytest

from adaptive_span import compose
from adaptive_span.reporting.run_directory import write_config
from adaptive_span.reporting.sweep_table import summarize, without_common_start


@cache
def config_of(model):
    return compose(["data=enwik8", "optimizer=adam", f"model={model}"])


def run(folder, name, loss, model, **train):
    config = config_of(model)
    folder = folder / name
    folder.mkdir()
    write_config(replace(config, train=replace(config.train, **train)), folder)
    line = {"step": 5, "tokens_per_second": 9.0, "span/mean": 123.4, "flops_per_token": 5e8, "valid/bpc": loss}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    return folder


def test_only_what_sets_runs_apart_is_shown(tmp_path, capsys):
    """Sizes, recipes and rates go with the name of the model; the file keeps them all."""
    settings = [("small", 1), ("base", 1), ("small", 2), ("base", 2)]
    runs = [
        run(tmp_path, f"enwik8-long-name-{number}x", 2.0 - number / 10, model, seed=seed)
        for number, (model, seed) in enumerate(settings)
    ]
    summarize(runs, tmp_path)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[:-1])) <= 80
    table = [line.split() for line in out.splitlines()]
    assert ["run", "model", "seed", "bpc", "bpc", "mean", "/token", "time"] in table
    assert [cells[:4] for cells in table if cells and cells[0].endswith("x")] == [
        ["3x", "base", "2", "1.7000"],
        ["2x", "small", "2", "1.8000"],
        ["1x", "base", "1", "1.9000"],
        ["0x", "small", "1", "2.0000"],
    ]
    with open(tmp_path / "sweep.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["model.hidden_size"] for row in rows} == {"256", "512"}
    assert re.search(r"sweep.csv, with \d+ more that differ \(model.num_layers, model.hidden_size, …\)$", out.strip())


def test_a_table_of_much_still_fits(tmp_path, capsys):
    keys = ("steps", "warmup_steps", "batch_size", "batch_split", "span_penalty", "seed")
    runs = [run(tmp_path, f"{number}", 2.0, "small", **dict.fromkeys(keys, 10**6 + number)) for number in range(40)]
    summarize(runs, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 80
    assert sum("123.4" in line for line in lines) == 40
    assert "more that differ" in lines[-1]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["runs/a-b-1", "runs/a-c-1"], ["b-1", "c-1"]),
        (["same/a", "same/a"], ["same/a", "same/a"]),
        (["a", "a-b"], ["a", "a-b"]),
        (["."], ["."]),
    ],
)
def test_what_all_names_begin_with_is_left_out(names, short):
    assert without_common_start(names) == short
