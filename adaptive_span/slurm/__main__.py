"""`python -m adaptive_span.slurm status DIR`: how the jobs of a run, or of a sweep, are doing."""

import argparse
import sys
from pathlib import Path

from adaptive_span.console import say, show
from adaptive_span.errors import UserError
from adaptive_span.slurm import status


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m adaptive_span.slurm", description=__doc__)
    command = parser.add_subparsers(required=True, metavar="status").add_parser("status", help="show a table of them")
    command.add_argument("directory", metavar="DIR", type=Path, help="of the run, or of the sweep")
    directory = parser.parse_args().directory.absolute()
    try:
        jobs = status.read(directory)
        if not jobs:
            raise UserError(f"nothing has been submitted from {directory}: it holds no slurm/jobs.json")
        states = status.states_of(jobs)
        show(status.table(jobs, states))
        for reason in status.reasons(jobs, states):
            say(f"\n{reason}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
