"""Download a published checkpoint of the original project, or convert one to this project's form.

    adaptive-span published download NAME [DIR]
    adaptive-span published FILE OUT

Training and evaluation read such files as they are.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from adaptive_span.terminal.printing import print_line

SIZES = ("num_layers", "hidden_size", "ffn_size", "memory_size", "num_heads", "max_span")


def main(argv: Sequence[str]) -> None:
    """Download or convert a checkpoint.

    Raises:
        UserError: It cannot be downloaded, or is none of the original project's.
    """
    if argv[:1] == ["download"]:
        _download(argv[1:])
    else:
        _convert(argv)


def _download(argv: Sequence[str]) -> None:
    from adaptive_span.checkpoint import original  # torch, which --help need not wait for

    parser = argparse.ArgumentParser("adaptive-span published download")
    parser.add_argument("name", help=", ".join(original.NAMES))
    parser.add_argument("directory", nargs="?", type=Path, default=Path("checkpoints"))
    arguments = parser.parse_args(argv)
    print_line(str(original.download(arguments.name, arguments.directory)))


def _convert(argv: Sequence[str]) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("adaptive-span published", description=__doc__, formatter_class=raw)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--ramp", type=int, default=32, help="tokens; the file does not say")
    arguments = parser.parse_args(argv)

    from adaptive_span.checkpoint import original

    state = original.convert_file(arguments.file, arguments.out, arguments.ramp)
    model = state["config"]["model"]
    sizes = {key: model[key] for key in SIZES}
    print_line(f"{arguments.out}: step {state['step']}, vocabulary {state['vocab_size']}, {sizes}")
