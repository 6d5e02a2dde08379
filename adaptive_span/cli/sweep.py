"""Print the table of a sweep, also of runs that still train, and write it to sweep.csv.

A sweep on this machine ends with it by itself.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from adaptive_span.reporting.run_record import directories_below
from adaptive_span.reporting.sweep_table import summarize


def main(argv: Sequence[str]) -> None:
    """Print the table of the runs below a folder.

    Raises:
        UserError: None has started.
    """
    parser = argparse.ArgumentParser("adaptive-span sweep", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="the folder that holds the runs")
    directory = parser.parse_args(argv).directory
    summarize(directories_below(directory), directory)
