"""A few of the kills of `tests/torture.py`; `.ci/extended` runs more."""

import sys

from tests.conftest import ROOT, finish


def test_a_training_that_is_killed_six_times_ends_as_if_nothing_had_happened():
    out = finish([sys.executable, "-m", "tests.torture", "--kills", "6"], ROOT).stdout
    assert out.endswith("6 kills, and nothing left behind\n")
