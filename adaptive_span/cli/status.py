"""Print how a run, or the runs of a sweep, are doing, here or as SLURM jobs, and where their trackers show them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from adaptive_span.errors import UserError
from adaptive_span.launch.slurm import status
from adaptive_span.reporting import run_record, status_table
from adaptive_span.reporting.tracking import whereabouts
from adaptive_span.terminal.printing import print_line, print_places, print_table


def main(argv: Sequence[str]) -> None:
    """Print a table of the jobs that were submitted from a folder, or else of the runs below it.

    Raises:
        UserError: There are none.
    """
    parser = argparse.ArgumentParser("adaptive-span status", description=__doc__)
    parser.add_argument("directory", metavar="DIR", type=Path, help="of the run, or of the sweep")
    directory = parser.parse_args(argv).directory.absolute()
    jobs = status.read(directory)
    runs = [Path(job.directory) for job in jobs] or run_record.directories_below(directory)
    if not runs:
        raise UserError(f"nothing has been submitted from {directory}, and it holds no run that has begun")
    if jobs:
        states = status.states_of(jobs)
        print_table(status.table(jobs, states))
        reasons = status.reasons(jobs, states)
    else:
        records = [run_record.read(run) for run in runs]
        print_table(status_table.table(records))
        reasons = [f"{record.directory} failed: {record.failure}" for record in records if record.failure]
    for reason in reasons:
        print_line(f"\n{reason}")
    for run in runs:
        if places := whereabouts(run):
            print_places({"run": run, **places})
