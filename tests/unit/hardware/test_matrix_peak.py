import json

import pytest
import torch

from adaptive_span.hardware.matrix_peak import matrix_peak

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "adaptive_span"


def test_a_peak_is_measured_once_for_each_precision_and_kept(folder):
    state = torch.get_rng_state()
    peak = matrix_peak(CPU, "fp32")
    assert torch.equal(torch.get_rng_state(), state)  # a training's random numbers are left alone
    assert matrix_peak(CPU, "fp32") == peak > 1e8
    matrix_peak(CPU, "bf16")
    machines = {json.loads(path.read_text())["machine"] for path in folder.iterdir()}
    assert {machine.split(", ")[-2] for machine in machines} == {"fp32", "bf16"}


@pytest.mark.parametrize("content", ["", "{}", '{"operations_per_second": 0}', '{"operations_per_second": "x"}'])
def test_a_damaged_file_is_measured_anew(content, folder):
    peak = matrix_peak(CPU, "fp32")
    [path] = folder.iterdir()
    path.write_text(content)
    assert matrix_peak(CPU, "fp32") == pytest.approx(peak, rel=0.95)
    assert json.loads(path.read_text())["operations_per_second"] > 1e8


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert matrix_peak(CPU, "fp32") > 1e8
