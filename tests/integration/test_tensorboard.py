"""A run's event files for TensorBoard, read back with its own reader."""

import json
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.conftest import finish, metrics, sentence


def test_tensorboard_holds_each_step_once_after_a_crash_and_what_the_run_came_to(launch, tmp_path):
    run = tmp_path / "run"
    settings = ["tracking=tensorboard", "run.dir=run", "validation.every=12"]
    launch(*settings, "log.every=1")
    (run / "checkpoints" / "step_00000024.pt").unlink()  # as if it had been killed after step 24, and 20 was saved
    (run / "evaluation.json").unlink()
    [events] = (run / "tensorboard").iterdir()
    events.write_bytes(events.read_bytes()[:-20])  # and within a record
    out = launch(*settings).stdout
    assert out.index(f"tensorboard  {run / 'tensorboard'}") < out.index("step 24/")
    kept = EventAccumulator(str(run / "tensorboard")).Reload()
    steps = [*range(1, 21), 24]
    assert [line["step"] for line in metrics(run)] == steps
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for key in lines[-1].keys() - {"step", "spans"}:
        expected = [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines if key in line]
        assert [(event.step, event.value) for event in kept.Scalars(key)] == expected, key
    assert [event.step for event in kept.Scalars("span/layer_01/head_3")] == steps
    assert [event.step for event in kept.Images("spans/heat_map")] == [12, 24]
    scores = json.loads((run / "evaluation.json").read_text())
    [scored] = kept.Scalars("exact/test/bpc")
    assert (scored.step, scored.value) == (24, pytest.approx(scores["splits"]["test"]["bpc"], rel=1e-6))
    start = kept.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    settings = HParamsPluginData.FromString(start).session_start_info.hparams
    assert settings["model.max_span"].number_value == 96
    out = finish([sys.executable, "-m", "adaptive_span", "status", "run"], tmp_path).stdout
    assert f"tensorboard  {run / 'tensorboard'}" in out
    assert "finished  24/24" in out


WITHOUT = """
import runpy, sys
sys.modules["tensorboard"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_without_the_package_it_is_one_sentence_and_nothing_is_left(launch, tmp_path):
    program = (sys.executable, "-c", WITHOUT)
    told = sentence(launch("run.dir=run", "tracking=tensorboard", ok=False, program=program))
    assert told == "there is no tensorboard here; pip install 'adaptive-span[tensorboard]' brings it"
    assert not (tmp_path / "run").exists()
