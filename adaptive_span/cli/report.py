"""Make one page of a run or of several: curves, spans over time, scores, cost, settings. It opens without a network."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from adaptive_span.errors import UserError
from adaptive_span.reporting.run_directory import refuse_links
from adaptive_span.terminal.printing import print_line


def main(argv: Sequence[str]) -> None:
    """Write the page.

    Raises:
        UserError: A folder holds no run, a run's file is damaged, or the extra `report` is missing.
    """
    parser = argparse.ArgumentParser("adaptive-span report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="of a run, or a folder of runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page; without it, report.html in the first DIR")
    arguments = parser.parse_args(argv)

    from adaptive_span.reporting.page import build  # what an extra brings

    folder = arguments.folders[0]
    path = arguments.out or folder / "report.html"
    if path.is_dir():
        raise UserError(f"--out={path} is a folder; give the name of a file, like {path / 'report.html'}")
    if not path.parent.is_dir() and arguments.out:
        raise UserError(f"--out={path} names a folder that is not there; make it first, or give another file")
    if not arguments.out:
        refuse_links(folder)
    count = build.write(arguments.folders, path)
    print_line(f"{path}: {count} run{'s' if count > 1 else ''} on one page; open it in a browser")
