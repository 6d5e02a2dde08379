"""Searches: one that is killed and resumed, and what is refused before anything runs."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from adaptive_span import compose
from adaptive_span.checkpoint.paths import last_step
from adaptive_span.errors import UserError
from adaptive_span.launch import processes
from adaptive_span.launch.search import space
from adaptive_span.launch.search.rounds import ask
from adaptive_span.launch.search.study import open_study
from adaptive_span.reporting.run_directory import pruned
from adaptive_span.storage.stored import read_json
from adaptive_span.training import trainer
from tests.conftest import ENVIRONMENT, SMALL, finish, metrics, sentence
from tests.integration.test_sweep import table

RANGES = """
train.span_penalty: 0.0
ranges:
  optimizer.lr: {low: 0.001, high: 1, log: true}
  model.ramp: [16, 32]
"""
SEARCH = ["sweep=mine", "search=optuna", "search.prune_after=2", "run.dir=search"]


@pytest.fixture
def ranges(tmp_path: Path) -> Path:
    """A sweep's file of the user's own."""
    path = tmp_path / "conf" / "sweep" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(RANGES, encoding="utf-8")
    return path


def summary(home: Path):
    return read_json(home / "search.json", dict)


def test_a_search_that_is_killed_resumes(command, launch, ranges, tmp_path):
    home = tmp_path / "search"
    with subprocess.Popen(command(*SEARCH, "search.trials=5"), cwd=tmp_path, env=ENVIRONMENT) as killed:
        while not (home / "2" / "metrics.jsonl").exists():  # two are told, the third has begun
            assert killed.poll() is None
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    ended = {run: (home / run / "metrics.jsonl").stat().st_mtime_ns for run in "01"}
    assert not (home / "3").exists()
    resumed = launch(*SEARCH, "search.trials=5").stdout
    assert ended == {run: (home / run / "metrics.jsonl").stat().st_mtime_ns for run in "01"}
    assert "trial 0 " not in resumed
    assert "trial 2 (3 of 5)" in resumed

    found = summary(home)
    trials = {trial["trial"]: trial for trial in found["trials"]}
    states = [trial["state"] for trial in trials.values()]
    assert len(states) == 5
    assert set(states) == {"complete", "pruned"}
    losses = {n: trial["loss"] for n, trial in trials.items() if trial["state"] == "complete"}
    assert found["best"] == min(losses, key=losses.__getitem__)
    for n, loss in losses.items():
        scores = json.loads((home / str(n) / "evaluation.json").read_text())
        assert scores["splits"]["valid"]["bpc"] == loss
    assert found["importance"].keys() == {"optimizer.lr", "model.ramp"}
    assert sum(found["importance"].values()) == pytest.approx(1)

    rows = table(home)
    assert int(Path(rows[0]["run"]).name) == found["best"]
    for row in rows:
        trial = trials[int(Path(row["run"]).name)]
        assert float(row["optimizer.lr"]) == trial["values"]["optimizer.lr"]
        assert row["reason"] == ("pruned after step 12 of 24" if trial["state"] == "pruned" else "")
        assert row["step"] == ("12" if trial["state"] == "pruned" else "24")
    assert f"5 trials: {len(losses)} complete, {5 - len(losses)} pruned, 0 failed" in resumed
    assert f"the best is run {found['best']}, with {losses[found['best']]:.4f} bpc on valid" in resumed
    assert resumed.count("  pruned\n") == 5 - len(losses)

    changed = sentence(launch(*SEARCH, "search.trials=7", "train.steps=13", ok=False))
    assert changed.startswith("run.dir=search holds a search with other steps (24 → 13); take back the change, or")
    (home / "search.journal").unlink()
    assert "holds runs, but no search; give" in sentence(launch(*SEARCH, "search.trials=7", ok=False))


def test_a_search_that_was_resumed_asks_for_what_it_would_have(tmp_path):
    chosen = space.distributions({"optimizer.lr": {"low": 0.01, "high": 1, "log": True}, "model.ramp": [16, 32]})

    def asked(home, most):
        study = open_study(home)
        while len(study.trials) < most:
            trial = ask(study, chosen, in_parallel=False)
            study.tell(trial.number, abs(trial.params["optimizer.lr"] - 0.1))
        return [trial.params for trial in study.trials]

    for home in ("straight", "resumed"):
        (tmp_path / home).mkdir()
    asked(tmp_path / "resumed", 11)  # also of those that are no longer drawn at random
    straight = asked(tmp_path / "straight", 14)
    assert asked(tmp_path / "resumed", 14) == straight
    assert len({json.dumps(params) for params in straight}) == 14
    (tmp_path / "resumed" / "search.journal").write_text("{}\n")
    with pytest.raises(UserError, match=r"search\.journal is damaged .*; give another run\.dir"):
        open_study(tmp_path / "resumed")


def test_a_trial_that_fails_is_counted_and_leaves_the_others_alone(launch, ranges, tmp_path):
    ranges.write_text("ranges: {optimizer.lr: [1.0e+30, 0.07]}", encoding="utf-8")
    settings = [*SEARCH, "optimizer.clip=1e30", "train.steps=12"]
    searched = launch(*settings, "search.trials=3", ok=False)
    assert searched.returncode == 2
    trials = summary(tmp_path / "search")["trials"]
    states = {(trial["values"]["optimizer.lr"], trial["state"]) for trial in trials}
    assert states == {(1e30, "failed"), (0.07, "complete")}
    assert len(trials) == 3
    assert "the loss is" in searched.stderr
    changed = sentence(launch(*settings, "search.trials=4", "train.seed=2", ok=False))
    assert "was begun with another configuration: train.seed (1 → 2)" in changed


def at_step_12(step: int, metrics: dict[str, float]) -> bool:
    """A judge, as processes of a run import it."""
    return step == 12 and metrics["valid/bpc"] > 0


def test_a_run_that_is_pruned_ends_in_all_its_processes_and_can_be_taken_up_again(text, tmp_path):
    run = tmp_path / "run"
    settings = ["data=files", f"data.path={text}", f"data.directory={tmp_path / 'data'}", *SMALL, f"run.dir={run}"]
    config = compose([*settings, "hardware.processes=2"])
    assert processes.launch(config.hardware, trainer.train, config, (), at_step_12) is None
    assert pruned(run) == "pruned after step 12 of 24"
    assert last_step(run) == 12
    assert trainer.train(compose(settings)).step == 24  # outside of a search nobody ends it
    assert pruned(run) is None
    assert [line["step"] for line in metrics(run)] == [5, 10, 12, 15, 20, 24]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (3, "=3 is no range: give {low: 0.01, high: 0.1}, with log: true or step: 0.01"),
        ({"low": 1}, "={'low': 1} is no range: give {low: 0.01, high: 0.1}"),
        ({"low": 2, "high": 1}, "is no range: low must be below high"),
        ({"low": "a", "high": 1}, "is no range: low, high and step must be numbers"),
        ({"low": 0, "high": 1, "log": True}, "is no range: log: true needs a low above 0"),
        ({"low": 1, "high": 2, "log": 3}, "is no range: log must be true or false"),
        ({"low": 1, "high": 2, "step": 4}, "is no range: step must be above 0"),
        ([1], "is no range: a list needs two or more choices"),
        ([1, [2]], "is no range: a list needs two or more choices"),
    ],
)
def test_what_is_no_range(given, told):
    with pytest.raises(UserError) as refused:
        space.distributions({"optimizer.lr": given})
    assert str(refused.value).startswith("sweep.ranges.optimizer.lr=")
    assert told in str(refused.value)


def test_values_are_of_the_kind_that_their_key_has():
    given = {
        "optimizer.lr": {"low": 1, "high": 2},
        "train.warmup_steps": {"low": 1, "high": 5, "step": 2},
        "optimizer": ["adam", "it's"],
    }
    chosen = space.distributions(given)
    ends = [space.arguments(corner) for corner in space.corners(chosen)]
    assert ends[0] == ["optimizer.lr=1.0", "train.warmup_steps=1", "optimizer='adam'"]
    assert ends[1:] == [
        ["optimizer.lr=2.0", *ends[0][1:]],
        [ends[0][0], "train.warmup_steps=5", ends[0][2]],
        [*ends[0][:2], "optimizer='it\\'s'"],
    ]
    params = {"optimizer.lr": 1.23456789, "train.warmup_steps": 3, "optimizer": "adam"}
    assert space.values(chosen, params) == params | {"optimizer.lr": 1.235}


REFUSED = {
    "search.trials=0": (RANGES, "search.trials=0 must be at least 1"),
    "train.seed=1,2": (RANGES, "train.seed=1,2 gives several values, but a search chooses by itself"),
    "train.seed=2": ("train.seed: 1", "search=optuna finds no ranges in sweep=mine that the command leaves open; give"),
    "train.seed=3": (
        "ranges: {optimizer.lrr: [1, 2]}",
        "there is no key 'optimizer.lrr'; did you mean 'optimizer.lr'?",
    ),
    "train.seed=4": ("ranges: {optimizer.lr: {low: 0, high: 1}}", "optimizer.lr=0.0 must be above 0"),
    "train.seed=5": ("ranges: {model.ramp: [16, 32, 0]}", "model.ramp=0 must be at least 1"),
    "train.seed=6": ("pairs: {train.seed: [1, 2]}\n" + RANGES, "sweep=mine holds pairs, which vary together"),
    "~search": (RANGES, "the ranges of a sweep's file are for a search; give search=optuna too"),
}


@pytest.mark.parametrize("typed", REFUSED)
def test_a_search_that_cannot_be_is_one_sentence_and_leaves_nothing(typed, launch, ranges, tmp_path):
    text, told = REFUSED[typed]
    ranges.write_text(text, encoding="utf-8")
    settings = ["sweep=mine"] if typed == "~search" else ["sweep=mine", "search=optuna", typed]
    assert sentence(launch(*settings, ok=False)).startswith(told)
    assert [path.name for path in tmp_path.iterdir()] == ["conf"]


def test_without_optuna_one_is_told_how_to_install_it(command, ranges, tmp_path):
    without = "import runpy, sys; sys.modules['optuna'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], "
    words = command(*SEARCH, program=(command()[0], "-c", without + "run_name='__main__')"))
    assert sentence(finish(words, tmp_path, ok=False)) == (
        "there is no optuna here; pip install 'adaptive-span[search]' brings it"
    )
