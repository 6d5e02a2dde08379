"""The same command finds its run again, also one that was begun before a key existed."""

import shutil
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest
import torch

from adaptive_span.config.checks import MISSING
from adaptive_span.config.identity import changes, default_run_dir
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.schema import Config
from tests.conftest import ROOT, finish, metrics, sentence
from tests.integration.test_train import assert_same_run
from tests.unit.config.test_config import composed

OLD = ROOT / "tests" / "old_run"  # step 10 of 20 of the command below, before any of the later keys; and its end
SETTINGS = (
    "data=files data.path=text tracking=none hardware=cpu model.num_layers=2 model.hidden_size=8 model.ffn_size=16 "
    "model.num_heads=2 model.max_span=32 model.ramp=8 model.block_size=8 model.dropout=0.1 train.steps=20 "
    "train.batch_size=4 train.warmup_steps=4 train.span_penalty=0.0001 validation.every=5 validation.blocks=4 "
    "checkpoint.every=10 log.every=5"
).split()
DIGITS = "zero one two three four five six seven eight nine".split()


def write_text(directory: Path) -> None:
    """Square numbers in words: the same bytes everywhere."""
    directory.mkdir()
    for split, first, last in (("train", 0, 900), ("valid", 900, 1000), ("test", 1000, 1100)):
        lines = [" ".join(DIGITS[int(digit)] for digit in str(n * n)) for n in range(first, last)]
        (directory / f"{split}.txt").write_bytes("\n".join(lines).encode())


def test_an_old_run_resumes_with_the_same_command_to_the_same_numbers(tmp_path):
    shutil.copytree(OLD / "runs", tmp_path / "runs")
    write_text(tmp_path / "text")
    out = finish([sys.executable, str(ROOT / "launch.py"), *SETTINGS], tmp_path).stdout
    [run] = (tmp_path / "runs").iterdir()
    [old] = (OLD / "runs").iterdir()
    assert run.name == old.name
    assert f"runs/{run.name} after step 10" in out
    tolerance = 1e-4  # this version, other releases of torch and other processors add up in another order
    end, expected = (torch.load(path) for path in (run / "checkpoints" / "step_00000020.pt", OLD / "end.pt"))
    torch.testing.assert_close(end["model"], expected["model"], rtol=0, atol=tolerance)
    for line, expected in zip(metrics(run), metrics(old), strict=True):
        assert {key: line[key] for key in expected} == pytest.approx(expected, rel=tolerance, abs=0)


def test_a_run_that_lacks_the_later_keys_resumes_to_the_same_bits(tmp_path):
    """The keys are those of the old run; the arithmetic is today's."""
    write_text(tmp_path / "text")
    launch = [sys.executable, str(ROOT / "launch.py"), *SETTINGS]
    finish([*launch, "run.dir=straight"], tmp_path)
    finish([*launch, "run.dir=run", "train.steps=10"], tmp_path)
    [old] = (OLD / "runs").iterdir()
    shutil.copy(old / "config.yaml", tmp_path / "run")
    config = torch.load(old / "checkpoints" / "step_00000010.pt")["config"]
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        torch.save(torch.load(path) | {"config": config}, path)
    assert "after step 10" in finish([*launch, "run.dir=run"], tmp_path).stdout
    assert_same_run(tmp_path / "straight", tmp_path / "run")


def test_a_run_that_was_begun_with_another_value_is_refused(tmp_path):
    shutil.copytree(OLD / "runs", tmp_path / "runs")
    write_text(tmp_path / "text")
    [run] = (tmp_path / "runs").iterdir()
    words = [sys.executable, str(ROOT / "launch.py"), *SETTINGS, f"run.dir={run}", "train.seed=2", "model.ramp=9"]
    assert "another configuration: model.ramp (8 → 9), train.seed (1 → 2);" in sentence(finish(words, tmp_path, False))


@dataclass
class LaterModel(ModelConfig):
    rope: bool = False


@dataclass
class Later(Config):
    """The configuration after two keys have been added."""

    model: LaterModel = MISSING
    letters: list[str] = field(default_factory=list)


def later(config: Config, letters: list[str], rope: bool = False) -> Later:
    return Later(**vars(config) | {"model": LaterModel(**asdict(config.model), rope=rope), "letters": letters})


def test_a_key_that_is_added_counts_once_it_is_not_at_its_default():
    before = composed()
    same, other, another = later(before, []), later(before, ["a"]), later(before, [], rope=True)
    assert default_run_dir(same) == default_run_dir(before)
    assert len({default_run_dir(config) for config in (same, other, another)}) == 3
    assert changes(before.as_dict(), same) == []
    assert changes(before.as_dict(), other) == ["letters ([] → ['a'])"]
    assert changes(other.as_dict(), same) == ["letters (['a'] → [])"]
    assert changes(before.as_dict(), another) == ["model.rope (False → True)"]


def test_what_does_not_change_what_is_trained_may_change():
    before = composed()
    after = replace(before, log=replace(before.log, every=7), hardware=replace(before.hardware, processes=2))
    assert changes(before.as_dict(), after) == []
    assert default_run_dir(before) == default_run_dir(after)
