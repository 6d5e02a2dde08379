"""Every file of sweeps/ with two short jobs, and the table that a sweep ends with."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from adaptive_span.config.overrides import quoted
from adaptive_span.launch.local import give_directories
from adaptive_span.launch.run_names import give_names, varied
from adaptive_span.reporting.run_directory import FAILURE
from adaptive_span.reporting.tracking import METRICS
from tests.conftest import ENVIRONMENT, ROOT, finish, sentence
from tests.unit.config.test_config import composed

TWO_JOBS = {
    "penalty_by_span": {"train.span_penalty": "0.0,1.0e-3", "model.max_span": "64"},
    "fixed_or_adaptive": {"model.adaptive_span": "true,false", "model.max_span": "64"},
    "rate_by_warmup": {"optimizer.lr": "0.03,0.07", "train.warmup_steps": "4"},
    "seeds": {"train.seed": "1,2"},
    "spans_from_32_tokens": {"model.max_span": "64,128", "model.span_init": "0.5,0.25"},
}


def table(home: Path) -> list[dict[str, str]]:
    with open(home / "sweep.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_no_sweep_is_left_out():
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "sweeps").glob("*.yaml")}
    assert files.keys() - {name for name, values in files.items() if "ranges" in values} == TWO_JOBS.keys()


@pytest.mark.parametrize("name", TWO_JOBS)
def test_a_sweep_runs_and_ends_with_a_table(name, launch, tmp_path):
    """As the first line of its file says, with fewer values of the same keys."""
    text = (ROOT / "sweeps" / f"{name}.yaml").read_text()
    assert text.startswith(f"# python launch.py sweep={name} ")
    values = yaml.safe_load(text)
    assert values.get("pairs", values).keys() == TWO_JOBS[name].keys()
    out = launch(f"sweep={name}", "train.steps=12", *(f"{key}={value}" for key, value in TWO_JOBS[name].items())).stdout
    varied = next(key for key, value in TWO_JOBS[name].items() if "," in value)
    [home] = (tmp_path / "runs").glob(f"{name}-????????")
    rows = table(home)
    assert {row[varied].lower() for row in rows} == {
        str(yaml.safe_load(v)).lower() for v in TWO_JOBS[name][varied].split(",")
    }
    assert [row["step"] for row in rows] == ["12", "12"]
    bpc = [float(row["valid/bpc"]) for row in rows]
    assert bpc == sorted(bpc)
    assert all(float(row[key]) > 0 for row in rows for key in ("test/bpc", "span/mean", "flops_per_token", "seconds"))
    assert "2 runs, the best on valid first" in out


def test_runs_that_have_not_ended_are_in_the_table_too(launch, tmp_path):
    launch("hydra.mode=MULTIRUN", "run.dir=sweep", "train.seed=1,2", "train.steps=12")
    (tmp_path / "sweep" / "1" / "evaluation.json").unlink()
    out = finish([sys.executable, "-m", "adaptive_span", "sweep", "sweep"], tmp_path).stdout
    assert max(map(len, out.splitlines())) <= 80
    rows = {Path(row["run"]).name: row for row in table(tmp_path / "sweep")}
    assert rows["0"]["test/bpc"]
    assert not rows["1"]["test/bpc"]
    assert "–" in out


def test_one_run_that_fails_leaves_the_others_alone(launch, tmp_path):
    rates = ["optimizer.lr=0.07,1e30,0.05", "optimizer.clip=1e30", "train.steps=12"]
    swept = launch("hydra.mode=MULTIRUN", *rates, "run.dir=sweep", ok=False)
    told = sentence(swept)
    assert "the loss is" in told
    rows = {row["optimizer.lr"]: row for row in table(tmp_path / "sweep")}
    assert all(float(rows[rate]["test/bpc"]) > 0 and not rows[rate]["reason"] for rate in ("0.07", "0.05"))
    empty = dict.fromkeys(("valid/bpc", "test/bpc", "span/mean", "flops_per_token"), "")
    assert rows["1e+30"] == rows["1e+30"] | empty | {"reason": told}
    assert f"\n1 failed: {told}\n" in swept.stdout


def test_why_a_run_has_failed_is_kept_until_it_is_taken_up_again(command, launch, tmp_path):
    swept = ["hydra.mode=MULTIRUN", "train.seed=1,2", "run.dir=sweep", "train.steps=6"]
    wrong = launch(*swept, "data.path=nowhere", ok=False)
    first, second = wrong.stderr.splitlines()
    assert first == second
    assert [f"error: {row['reason']}" for row in table(tmp_path / "sweep")] == [first, second]
    launch(*swept)
    assert [row["reason"] for row in table(tmp_path / "sweep")] == ["", ""]
    with subprocess.Popen(command("run.dir=run", "train.steps=100000"), cwd=tmp_path, env=ENVIRONMENT) as training:
        while not (tmp_path / "run" / METRICS).exists():
            assert training.poll() is None
        launch("run.dir=run", "train.steps=100000", ok=False)  # which is not why that one has failed
        assert not (tmp_path / "run" / FAILURE).exists()
        training.terminate()


CRASH = """
import runpy, sys
from adaptive_span.training import trainer
train = trainer.train
trainer.train = lambda config, command, judge: train(config) if config.train.seed != 2 else broken()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_crash_of_one_run_is_shown_and_leaves_the_others_alone(launch, tmp_path):
    settings = ["hydra.mode=MULTIRUN", "train.seed=1,2,3", "train.steps=6", "run.dir=sweep"]
    swept = launch(*settings, ok=False, program=(sys.executable, "-c", CRASH))
    assert swept.returncode == 1
    assert "NameError: name 'broken' is not defined" in swept.stderr
    reasons = {row["train.seed"]: row["reason"] for row in table(tmp_path / "sweep")}
    assert reasons == {"1": "", "2": "NameError: name 'broken' is not defined", "3": ""}


def test_a_sweep_has_a_directory_that_no_other_sweep_has():
    def home(*swept):
        hydra = OmegaConf.create({"hydra": {"runtime": {"choices": {"sweep": None}}}})
        return give_directories([composed(setting) for setting in swept], hydra)

    first = home("train.seed=1", "train.seed=2")
    assert home("train.seed=1", "train.seed=2") == first
    others = [home("model.attention=dense", "model.attention=banded"), home("train.steps=5", "train.steps=6")]
    assert len({first, *others, home("train.seed=1", "train.seed=3")}) == 4


@pytest.mark.parametrize("value", ["a b", "it's", "a\\b", "\\", "a=b,c", "é", "${x}", "[1]", "'"])
def test_a_quoted_value_is_read_back(value):
    read = OverridesParser.create().parse_override(f"key={quoted(value)}").value()
    assert OmegaConf.create({"key": read}).key == value


def test_all_runs_of_a_sweep_are_checked_before_the_first_begins(launch, tmp_path):
    swept = launch("hydra.mode=MULTIRUN", "model.num_heads=4,3", ok=False)
    assert sentence(swept).startswith("model.num_heads=3 does not divide")
    assert list(tmp_path.iterdir()) == []


def test_a_wandb_agent_can_call_launch(launch, tmp_path):
    """An agent fills in `command` like this: `${args_no_hyphens}` is key=value for each parameter of a trial."""
    sweep = yaml.safe_load((ROOT / "sweeps" / "wandb_agent.yml").read_text())
    assert sweep["command"][:3] == ["${env}", "python", "${program}"]
    assert sweep["command"][-1] == "${args_no_hyphens}"
    assert sweep["program"] == "launch.py"
    assert sweep["metric"]["name"] == "valid/bpc"
    for trial, (penalty, rate) in enumerate([(1.0e-7, 0.03), (9.87e-06, 0.15)]):
        chosen = dict(zip(sweep["parameters"], (penalty, rate), strict=True))
        launch(*(f"{key}={value}" for key, value in chosen.items()), f"run.dir={trial}", "train.steps=6")
        config = yaml.safe_load((tmp_path / str(trial) / "config.yaml").read_text())
        assert [config["train"]["span_penalty"], config["optimizer"]["lr"]] == [penalty, rate]


def test_the_runs_of_a_sweep_are_called_by_what_varies():
    runs = [["data=files", "train.seed=1", "model.max_span=64"], ["data=files", "train.seed=2", "model.max_span=64"]]
    assert varied(runs) == ["seed=1", "seed=2"]
    runs = [["model=small", "model.name=x", "optimizer.name='a b'"], ["model=base", "model.name=y", "optimizer.name=c"]]
    assert varied(runs) == ["model=small model.name=x optimizer.name=a b", "model=base model.name=y optimizer.name=c"]
    configs = [composed(f"run.dir=sweep/{number}") for number in range(2)]
    give_names(configs, [["train.seed=1"], ["train.seed=2"]], Path("sweep"))
    assert [(config.run.name, config.run.group) for config in configs] == [("seed=1", "sweep"), ("seed=2", "sweep")]
    give_names(alone := [composed()], [["train.seed=1"]], Path("run"))
    assert alone[0].run.name is None
