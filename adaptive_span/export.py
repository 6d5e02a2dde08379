"""Write a checkpoint as a folder of the Hugging Face Hub: model.safetensors and config.json.

python -m adaptive_span.export CHECKPOINT DIR
"""

import argparse
from pathlib import Path

from adaptive_span.errors import UserError
from adaptive_span.terminal.printing import print_line
from adaptive_span.terminal.program import exit_codes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("directory", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.directory.is_file():
        raise UserError(f"{arguments.directory} is a file; give a folder")

    from adaptive_span.checkpoint import hugging_face  # what an extra brings

    hugging_face.from_checkpoint(arguments.checkpoint).save_pretrained(arguments.directory)
    where = str(arguments.directory)
    print_line(f"{where}: adaptive_span.hub.PretrainedTransformer.from_pretrained({where!r}) reads it")


if __name__ == "__main__":
    with exit_codes():
        main()
