"""What people type, and the code that a program ends with."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from adaptive_span import compose, train
from adaptive_span.config.overrides import complete, setting
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError
from adaptive_span.launch.sweep_jobs import Sweeper
from adaptive_span.reporting.run_directory import write_config
from tests.conftest import ENVIRONMENT, ROOT, SMALL, finish, sentence

PROGRAMS = {  # with what is wrong about each command
    "adaptive_span sweep nowhere": "error: no run below nowhere has begun",
    "adaptive_span published nowhere out": "error: there is no checkpoint nowhere",
    "adaptive_span published download enwik9": "error: there is no published checkpoint 'enwik9'",
    "adaptive_span export nowhere out": "error: there is no checkpoint nowhere",
    "adaptive_span status nowhere": "error: nothing has been submitted from",
    "adaptive_span.benchmark nothing": "adaptive-span benchmark: error: argument what",
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
    text = f"from adaptive_span.terminal.program import *\nwith exit_codes():\n    raise {raised}"
    result = finish([sys.executable, "-c", text], tmp_path, ok=False)
    assert result.returncode == code
    assert result.stderr.endswith(told)
    assert ("Traceback" in result.stderr) == (code == 1)


def test_a_stopped_sweep_does_not_begin_its_next_run(command, tmp_path):
    log = tmp_path / "log"
    words = command("-m", "train.seed=1,2", "train.steps=100000", "run.dir=sweep")
    with log.open("w") as out:
        stopped = subprocess.Popen(words, cwd=tmp_path, stdout=out, stderr=out, env=ENVIRONMENT)
        while "step 5/" not in log.read_text():
            assert stopped.poll() is None, log.read_text()
            time.sleep(0.02)
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(60) == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["0"]


ODD = [*"results/lr=0.1/日本 a,b it's a\"b $HOME ~x/y 1_000 1e3 (1) true".split(), "my dir/a=b[1]", "é {x}", " x"]


@pytest.mark.parametrize("value", ODD)
def test_text_is_read_as_a_shell_completes_it(value):
    assert compose(["data=files", f"data.path={value}"]).data.path == value


@pytest.mark.parametrize("value", [*ODD, "null", "${x}", "a\\b", "'a'", "choice(1,2)", "\\", "a,'b'"])
def test_a_setting_that_is_printed_is_read_back(value):
    assert compose(["data=files", setting("data.path", value)]).data.path == value


def test_what_hydra_should_read_is_left_to_it():
    assert compose(["data=files", "data.path=x", "tracking.group=null"]).tracking.group is None
    assert compose(["data=files", "data.path=${data.name}"]).data.path == "files"
    assert compose(["data=files", "data.path='a b'"]).data.path == "a b"
    assert compose(["data=files", "data.path=~/x"]).data.path == os.path.expanduser("~/x")
    assert compose(["data.directory=~/x"]).data.directory == os.path.expanduser("~/x")


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("run.dir=a,b", "run.dir='a','b'"),
        ("data.path=lr=1,lr=2", "data.path='lr=1','lr=2'"),
        ("data.path=choice(a,b)", "data.path=choice(a,b)"),
        ("model.name=a,b", "model.name=a,b"),
    ],
)
def test_a_comma_parts_text_in_a_sweep_alone(word, read):
    assert complete([word], Config, sweeping=True) == [read]


def test_steps_alone_drop_the_fine_tuning_phase_of_a_recipe():
    recipe = ["model=large", "data=enwik8"]
    assert compose(recipe).train.total_steps == 170_000
    assert compose([*recipe, "train.steps=60"]).train.total_steps == 60
    assert compose([*recipe, "train.steps=60", "train.finetune_steps=7"]).train.total_steps == 67
    assert compose([*recipe, "train.finetune_steps=7"]).train.total_steps == 150_007


def jobs(pairs: object, *words: str, **others: str) -> list[list[str]]:
    sweeper = Sweeper(None, {**others, "pairs": pairs})
    return sweeper._jobs(OverridesParser.create().parse_overrides([*(f"{k}={v}" for k, v in others.items()), *words]))


PAIRS = {"train.seed": [7, 8], "optimizer.lr": [0.1, 0.2]}


def test_pairs_of_a_sweep_vary_together():
    first, second = ["train.seed=7", "optimizer.lr=0.1"], ["train.seed=8", "optimizer.lr=0.2"]
    assert jobs(PAIRS) == [first, second]
    assert jobs(PAIRS, "model.ramp=1,2") == [[f"model.ramp={n}", *pair] for n in (1, 2) for pair in (first, second)]
    assert jobs(PAIRS, "train.seed=3") == [["train.seed=3", "optimizer.lr=0.1"], ["train.seed=3", "optimizer.lr=0.2"]]
    assert jobs(PAIRS, "train.seed=1,2,3", "optimizer.lr=4,5,6")[2] == ["train.seed=3", "optimizer.lr=6"]
    assert jobs({"train.steps": [5, 6]})[1] == ["train.steps=6", "train.finetune_steps=0"]
    for wrong, told in (
        ({"train.seed": [7, 8], "optimizer.lr": [1]}, "train.seed has 2, optimizer.lr has 1; give each"),
        ({"train.seed": 7}, "must hold a list for each key"),
        ([1], "must hold a list for each key"),
    ):
        with pytest.raises(UserError, match=told):
            jobs(wrong)
    with pytest.raises(UserError, match=r"train.seed has 3, optimizer.lr has 2"):
        jobs(PAIRS, "train.seed=1,2,3")


def wrong_file(directory: Path, text: str) -> str:
    (directory / "config.yaml").write_text(text, encoding="utf-8")
    return sentence(finish([sys.executable, str(ROOT / "launch.py"), "--config", "config.yaml"], directory, ok=False))


def test_a_file_that_is_no_configuration_of_a_run_is_one_sentence(tmp_path):
    assert wrong_file(tmp_path, "a: [").startswith("--config config.yaml cannot be read (while parsing")
    assert wrong_file(tmp_path, "[1]").startswith("--config config.yaml is not the config.yaml of a run")
    write_config(compose(), tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    assert wrong_file(tmp_path, text.replace("  seed:", "  sed:")).startswith(
        "--config config.yaml: there is no key 'train.sed'; did you mean 'train.seed'?"
    )


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--config-dir . --config-name config", "--config-name config is not taken"),
        ("--config nowhere.yaml", "--config nowhere.yaml cannot be read"),
        ("-m train.seed=1 --cfg job", "Only one of --run, --multirun"),
        ("train.seed=1 -m train.steps=1,x", "train.steps=x must be a whole number"),
    ],
)
def test_a_flag_that_is_wrong_is_one_sentence_and_leaves_nothing(flags, told, tmp_path):
    result = finish([sys.executable, str(ROOT / "launch.py"), *flags.split()], tmp_path, ok=False)
    assert sentence(result).startswith(told)
    assert list(tmp_path.iterdir()) == []


def shell(command: str, directory: Path) -> str:
    words = command.replace("python ", f"{sys.executable} ", 1)
    result = subprocess.run(words, shell=True, cwd=directory, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_what_a_run_prints_can_be_pasted_and_repeats_it(launch, tmp_path):
    """Its commands, also with --cfg, an own seed on top, and a directory that no other program would like."""
    name = "a dir/lr=0.1,x[1] $HOME 日本 'q' :cat:"
    out = launch("run.dir=" + name, "train.steps=6", "train.finetune_steps=3", "model.ramp=16").stdout
    assert "training for 9 steps: 6 at the full rate, then 3 at a tenth\n" in out
    told = {key: re.search(rf"^{key} +(python .*)$", out, re.MULTILINE)[1] for key in ("train on", "evaluate")}
    assert "exact evaluation" in shell(told["evaluate"], tmp_path)
    again = shell(told["train on"], tmp_path)
    assert f"{name} after step 9" in again
    assert "training for 18 steps: 15 at the full rate, then 3 at a tenth\n" in again
    other = yaml.safe_load(shell(told["train on"] + " train.seed=2 --cfg job hardware=gpu", tmp_path))
    assert (other["run"]["dir"], other["train"]["seed"], other["model"]["ramp"]) == (None, 2, 16)
    assert other["hardware"]["device"] == "cuda"
    assert os.listdir(tmp_path / "a dir") == [Path(name).name]


def test_a_run_whose_rate_has_fallen_trains_on_as_a_new_run_from_its_weights(launch, tmp_path):
    out = launch("run.dir=first", "optimizer=muon", "train.schedule=linear", "train.steps=6").stdout
    told = re.search(r"^train on +(python .*)$", out, re.MULTILINE)[1]
    assert "train.init_from=first/checkpoints/" in told
    assert "training for 6 steps\n" in shell(told, tmp_path)
    assert [len(list(place.glob("metrics.jsonl"))) for place in (tmp_path / "runs").iterdir()] == [1]
    more = launch("run.dir=first", "optimizer=muon", "train.schedule=linear", "train.steps=9", ok=False)
    assert "was begun with another configuration: train.steps (6 → 9)" in sentence(more)


def test_a_notebook_composes_and_trains(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = compose([*SMALL, "data=files", f"data.path={text}", "train.steps=6"])
    result = train(config)
    assert (result.step, result.directory.parent) == (6, Path("runs"))
    assert f"{result.scores['test']['bpc']:.4f}" in capsys.readouterr().out
    for words, told in ((["model=tinny"], "model=tinny must be one of"), (["sweep=seeds"], "sweep=NAME is for launch")):
        with pytest.raises(UserError, match=told):
            compose(words)
    with pytest.raises(UserError, match="several values"):
        compose(["train.seed=1,2"])
