"""Draw what heads learned: RUN/figures/spans, evolution; of several runs also curves and cost.

adaptive-span figures RUN…           of runs, or of the runs in a folder
adaptive-span figures CHECKPOINT…    also of a published one: the spans alone, beside the file
adaptive-span figures SPANS.JSON…    of fits of one model: loss against the share of its cache, beside the first
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from adaptive_span.errors import UserError
from adaptive_span.terminal.printing import print_line

FORMATS = ("png", "svg", "pdf")


def main(argv: Sequence[str]) -> None:
    """Draw the figures, and print where they are.

    Raises:
        UserError: There is no such run or checkpoint, or nothing to draw.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("adaptive-span figures", description=__doc__, formatter_class=raw)
    parser.add_argument("sources", nargs="+", type=Path, metavar="RUN|CHECKPOINT|SPANS.JSON")
    parser.add_argument("--format", default="png", help="of the files, several with commas between: png, svg, pdf")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write; RUN/figures")
    arguments = parser.parse_args(argv)
    formats = arguments.format.split(",")
    if unknown := [each for each in formats if each not in FORMATS]:
        raise UserError(f"--format={unknown[0]} is none of {', '.join(FORMATS)}")

    if any(source.suffix == ".json" for source in arguments.sources):
        _compare_fits(arguments.sources, formats, arguments.out)
        return

    from adaptive_span.reporting import figure_files  # matplotlib, which --help need not wait for

    for path in figure_files.draw(arguments.sources, formats, arguments.out):
        print_line(str(path))


def _compare_fits(files: Sequence[Path], formats: Sequence[str], out: Path | None) -> None:
    from adaptive_span.hf import report, spans
    from adaptive_span.reporting.figure_style import save_figure

    figure = report.compare([spans.load(file) for file in files])
    for ending in formats:
        path = (out or files[0].parent) / f"pareto.{ending}"
        save_figure(figure, path)
        print_line(str(path))
