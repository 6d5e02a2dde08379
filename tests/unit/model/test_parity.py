"""The model computes what the published one computes: outputs, gradients, and a short training."""

import subprocess
import sys

import pytest

from adaptive_span.config.schema import ATTENTIONS
from tests.conftest import ROOT
from tests.parity import TOLERANCES, check

VECTORS = sorted((ROOT / "tests" / "vectors").glob("*.pt"))


@pytest.mark.parametrize("attention", [name for name in ATTENTIONS if name != "fused"])  # which see in test_fused.py
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_vectors(path, attention):
    errors = check(path, attention)
    assert errors.keys() == TOLERANCES.keys()
    assert {kind: error for kind, error in errors.items() if not error <= TOLERANCES[kind]} == {}


def test_the_command_checks_files_and_notices_a_wrong_one(tmp_path):
    import torch

    vectors = torch.load(VECTORS[0], weights_only=True)
    vectors["eval_nll"] += 1e-3
    torch.save(vectors, tmp_path / "wrong.pt")
    command = [sys.executable, "-m", "tests.parity", "--attention", "dense"]
    right = subprocess.run([*command, *map(str, VECTORS)], cwd=ROOT, capture_output=True, text=True)
    wrong = subprocess.run([*command, str(tmp_path / "wrong.pt")], cwd=ROOT, capture_output=True, text=True)
    assert (right.returncode, wrong.returncode) == (0, 1)
    assert right.stdout.count("ok") == 4 * len(VECTORS)
    assert wrong.stdout.count("FAILED") == 1
