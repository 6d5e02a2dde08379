"""`python -m adaptive_span.launch.slurm status DIR`: how the jobs of a run, or of a sweep, are doing."""

import argparse
from pathlib import Path

from adaptive_span.errors import UserError
from adaptive_span.launch.slurm import status
from adaptive_span.terminal.printing import print_line, print_table
from adaptive_span.terminal.program import exit_codes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m adaptive_span.launch.slurm", description=__doc__)
    command = parser.add_subparsers(required=True, metavar="status").add_parser("status", help="show a table of them")
    command.add_argument("directory", metavar="DIR", type=Path, help="of the run, or of the sweep")
    directory = parser.parse_args().directory.absolute()
    jobs = status.read(directory)
    if not jobs:
        raise UserError(f"nothing has been submitted from {directory}: it holds no slurm/jobs.json")
    states = status.states_of(jobs)
    print_table(status.table(jobs, states))
    for reason in status.reasons(jobs, states):
        print_line(f"\n{reason}")


if __name__ == "__main__":
    with exit_codes():
        main()
