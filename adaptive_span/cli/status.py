"""Print how the SLURM jobs of a run, or of a sweep, are doing."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from adaptive_span.errors import UserError
from adaptive_span.launch.slurm import status
from adaptive_span.terminal.printing import print_line, print_table


def main(argv: Sequence[str]) -> None:
    """Print a table of the jobs that were submitted from a folder.

    Raises:
        UserError: There are none.
    """
    parser = argparse.ArgumentParser("adaptive-span status", description=__doc__)
    parser.add_argument("directory", metavar="DIR", type=Path, help="of the run, or of the sweep")
    directory = parser.parse_args(argv).directory.absolute()
    jobs = status.read(directory)
    if not jobs:
        raise UserError(f"nothing has been submitted from {directory}: it holds no slurm/jobs.json")
    states = status.states_of(jobs)
    print_table(status.table(jobs, states))
    for reason in status.reasons(jobs, states):
        print_line(f"\n{reason}")
