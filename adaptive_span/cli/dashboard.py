"""Make a workspace of Weights & Biases for a project: its losses, spans and costs, laid out without a click."""

import argparse
from collections.abc import Sequence

from adaptive_span.terminal.printing import print_line


def main(argv: Sequence[str]) -> None:
    """Make the workspace, and print its address.

    Raises:
        UserError: Nobody is logged in, the project holds no run, or the extra `dashboard` is missing.
    """
    parser = argparse.ArgumentParser("adaptive-span dashboard", description=__doc__)
    parser.add_argument("project", metavar="PROJECT", help="or ENTITY/PROJECT, as tracking.entity and tracking.project")
    project = parser.parse_args(argv).project

    from adaptive_span.reporting import dashboard  # what an extra brings

    print_line(f"{project}: {dashboard.save(project)}")
