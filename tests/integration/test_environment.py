"""A run's directory says with what it was trained, and a deterministic run is the same run on a CPU."""

import json
import subprocess
import sys

import torch

from adaptive_span.training.environment import deterministic
from tests.conftest import ROOT
from tests.integration.test_train import assert_same_run


def test_each_start_is_recorded_and_deterministic_training_is_the_same(launch, tmp_path):
    launch("run.dir=plain", "train.steps=8", "validation.every=4", "log.every=4")
    for steps in (4, 8):
        launch("run.dir=exact", f"train.steps={steps}", "validation.every=4", "log.every=4", "train.deterministic=true")
    assert_same_run(tmp_path / "plain", tmp_path / "exact")
    lines = [json.loads(line) for line in (tmp_path / "exact" / "environment.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 4]
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    for line in lines:
        assert line["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
        assert line["python"] == ".".join(map(str, sys.version_info[:3]))
        assert line["commit"] == (head or None)
        assert line["command"].endswith("train.deterministic=true")
        assert line["cpu"]
        assert line["system"]


def test_deterministic_is_left_behind():
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
