"""Write a checkpoint as a folder of the Hugging Face Hub: model.safetensors and config.json."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from adaptive_span.errors import UserError
from adaptive_span.terminal.printing import print_line


def main(argv: Sequence[str]) -> None:
    """Write the folder.

    Raises:
        UserError: The checkpoint cannot be read, or the extra `export` is missing.
    """
    parser = argparse.ArgumentParser("adaptive-span export", description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("directory", type=Path, metavar="DIR")
    arguments = parser.parse_args(argv)
    if arguments.directory.is_file():
        raise UserError(f"{arguments.directory} is a file; give a folder")

    from adaptive_span.checkpoint import hugging_face  # what an extra brings

    hugging_face.from_checkpoint(arguments.checkpoint).save_pretrained(arguments.directory)
    where = str(arguments.directory)
    reader = "adaptive_span.checkpoint.hugging_face.PretrainedTransformer"
    print_line(f"{where}: {reader}.from_pretrained({where!r}) reads it")
