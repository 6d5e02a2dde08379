"""Write a model as a folder of the Hugging Face Hub, which `transformers` loads without this package.

    adaptive-span export runs/enwik8-spans DIR        the best weights of a run
    adaptive-span export FILE DIR                     a checkpoint, or an exported folder
    adaptive-span export enwik8.pt DIR data=enwik8    one of the original project: its text, whose symbols it knows

The folder holds the weights (safetensors), the configuration, a tokenizer, the model's code, and a model card with its
scores and a figure of its spans.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from adaptive_span.config.data_schema import DataConfig
from adaptive_span.errors import UserError
from adaptive_span.terminal.printing import print_places


def main(argv: Sequence[str]) -> None:
    """Write the folder, and upload it where that is asked for.

    Raises:
        UserError: The model cannot be read, the folder cannot be written or uploaded, or an extra is missing.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("adaptive-span export", description=__doc__, formatter_class=raw)
    parser.add_argument("source", type=Path, metavar="RUN|CHECKPOINT")
    parser.add_argument("directory", type=Path, metavar="DIR", help="where to write; it must not exist, or be empty")
    settings = "data=NAME with more of its keys, and numbering=same, where the file does not hold its vocabulary"
    parser.add_argument("settings", nargs="*", metavar="key=value", help=settings)
    parser.add_argument("--push", metavar="NAME", help="upload it to the Hub as NAME or USER/NAME")
    parser.add_argument("--private", action="store_true", help="make that repository private")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.private and not arguments.push:
        raise UserError("--private goes with --push NAME; give both, or neither")

    from adaptive_span.export import folder

    folder.refuse_occupied(arguments.directory)
    if arguments.push:
        from adaptive_span.export import push

        push.check(arguments.push)
    data, numbering = _data(arguments.settings)
    folder.export(arguments.source, arguments.directory, data, numbering)
    where = push.push(arguments.directory, arguments.push, arguments.private) if arguments.push else None
    print_places(
        {
            "written": arguments.directory,
            "model card": arguments.directory / "README.md",
            "uploaded": where,
            "load": f"AutoModelForCausalLM.from_pretrained({str(arguments.directory)!r}, trust_remote_code=True)",
            "load here": f"adaptive_span.load_model({str(arguments.directory)!r})",
        }
    )


def _data(settings: list[str]) -> tuple[DataConfig, str | None]:
    """Return the text that is named, nameless where none is, and what is said of its numbering."""
    if not settings:
        return DataConfig(name=""), None
    from adaptive_span.launch import composition

    config = composition.compose(settings)
    named = any(setting.startswith("data=") for setting in settings)
    return config.data if named else DataConfig(name=""), config.numbering
