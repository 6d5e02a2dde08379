"""The model computes what the published one computes: outputs, gradients, and a short training."""

import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.parity import TOLERANCES, check

VECTORS = sorted((ROOT / "tests" / "vectors").glob("*.pt"))


@pytest.mark.parametrize("attention", ["dense", "banded"])  # fused: see test_fused.py
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_vectors(path, attention):
    errors = check(path, attention)
    assert errors.keys() == TOLERANCES.keys()
    assert {kind: error for kind, error in errors.items() if not error <= TOLERANCES[kind]} == {}


def test_the_command_checks_files_and_notices_a_wrong_one(tmp_path):
    vectors = torch.load(VECTORS[0], weights_only=True)
    vectors["eval_nll"] += 1e-3
    vectors["grad_span_loss"] *= 1.01
    vectors["final_state_dict"]["module.out_emb.weight"] = vectors["state_dict"]["module.out_emb.weight"]
    torch.save(vectors, tmp_path / "wrong.pt")
    for files, code in ((VECTORS[:2], 0), ([VECTORS[1], tmp_path / "wrong.pt"], 1)):
        command = [sys.executable, "-m", "tests.parity", "--attention", "dense", *map(str, files)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == code, result.stderr
        failed = [line.split("  ")[1] for line in result.stdout.splitlines() if line.endswith("FAILED")]
        assert failed == ["nll", "loss", "trained"] * code
