"""A few of the kills of `tests/torture.py`; `.ci/extended` runs more."""

import subprocess
import sys

import pytest

from tests.conftest import ENVIRONMENT, ROOT


@pytest.mark.timeout(900)  # ten trainings, one after the other, beside all that is tested at the same time
def test_a_training_that_is_killed_six_times_ends_as_if_nothing_had_happened():
    words = [sys.executable, "-m", "tests.torture", "--kills", "6"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.stdout.endswith("6 kills, and nothing left behind\n"), result.stdout + result.stderr
