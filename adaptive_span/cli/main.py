"""The command `adaptive-span`: find the command that is asked for, and pass the other arguments to it."""

import sys
from importlib import import_module

from adaptive_span.errors import UserError, did_you_mean
from adaptive_span.terminal.program import exit_codes
from adaptive_span.version import __version__

COMMANDS = {
    "data": "prepare a text, and show a first look at it: NAME key=value …",
    "train": "train a model, or resume a run: key=value …",
    "evaluate": "score a run or a checkpoint: run=DIR or checkpoint=FILE, key=value …",
    "generate": "let a run or a checkpoint write text: run=DIR or checkpoint=FILE, prompt=TEXT key=value …",
    "fit": "learn how far the heads of a Hugging Face model need to look: model=NAME, key=value …",
    "sweep": "print the table of the runs below a folder: DIR",
    "figures": "draw how far heads look and how that grew, and several runs beside each other: RUN|CHECKPOINT…",
    "status": "print how a run, a sweep or their SLURM jobs are doing, and where they are tracked: DIR",
    "published": "download or convert a checkpoint of the original project: download NAME, or FILE OUT",
    "report": "make one HTML page of a run or of several: DIR … --out FILE",
    "dashboard": "lay out the runs of a project in Weights & Biases: PROJECT",
    "export": "write a model as a folder that transformers loads: RUN|CHECKPOINT DIR",
    "benchmark": "measure what a model costs on this machine: step, attention, evaluate, …",
    "estimate": "estimate memory and time of a training on a GPU: gpu=NAME key=value …",
}
HELP = ("-h", "--help")


def main() -> None:
    """Run the command that the first argument names.

    Raises:
        SystemExit: With the code that stands for how it ended.
    """
    with exit_codes():
        name, *argv = sys.argv[1:] or ["--help"]
        if name in HELP:
            print(usage())
        elif name == "--version":
            print(__version__)
        elif name in COMMANDS:
            import_module(f"adaptive_span.cli.{name}").main(argv)
        else:
            alike = did_you_mean(name, list(COMMANDS))
            raise UserError(f"there is no command '{name}'{alike}; adaptive-span --help lists them")


def usage() -> str:
    """Return a line per command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: adaptive-span COMMAND …   (adaptive-span COMMAND --help explains one)", "", *lines])
