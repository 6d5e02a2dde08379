"""What things cost on this machine.

- attention: that of all layers with its keys and values, or of one --layer, forward and backward.
- step: forward, backward and update of a whole model, beside the same without attention.
- evaluate: scoring a text, from kept keys and values, beside projecting the cache again for every block.
- growth: a step while the spans grow from 0 to the maximum; --figure draws it.
- loop: the whole training loop against bare forward + backward + update.
- count: launches, bytes, operations and memory of a step on a GPU, which need not be here.
- processes: updates of 2 processes against 1, with as much work for each.
- data: numbering 100 MB of bytes.

Ways are timed in turns, in one process; figures are medians. Memory is what one run adds at its height to a process
of its own. All but loop, processes and data need torch, numpy and PyYAML alone; fused attention and count need triton
too.
"""

import argparse
import re
from dataclasses import asdict
from pathlib import Path

import torch

from adaptive_span.attention import why_not_fused
from adaptive_span.benchmark import costs, profiles
from adaptive_span.benchmark.cost import CARDS
from adaptive_span.benchmark.costs import Row, Settings
from adaptive_span.config.checks import Range
from adaptive_span.config.schema import ATTENTIONS
from adaptive_span.errors import UserError
from adaptive_span.hardware.precision import EMULATED, is_emulated
from adaptive_span.storage import strict_json
from adaptive_span.terminal.program import exit_codes

NO_MEMORY = "can't allocate memory|[Ss]torage size calculation overflowed|numel: integer multiplication overflow"
PROJECT = ("loop", "processes", "data")
USUAL = {"model": "base", "batch_size": 2, "dropout": 0.0, "dtype": "fp32"}
USUAL_COUNT = {"model": "large", "batch_size": 64, "dropout": 0.4, "dtype": "bf16"}  # of `count`: as it is trained


def main() -> None:
    arguments = _arguments()
    settings = Settings(
        model=arguments.model, profile=arguments.profile, batch_size=arguments.batch_size, layer=arguments.layer,
        dropout=arguments.dropout, precision=arguments.dtype,
        device=torch.device("cpu" if arguments.cpu or not torch.cuda.is_available() else "cuda"),
    )  # fmt: skip
    if is_emulated(settings.precision, settings.device):
        print(EMULATED, flush=True)
    try:
        rows = _measure(arguments, settings)
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not re.search(NO_MEMORY, str(error)):
            raise
        given = f"--batch-size {settings.batch_size} --model {settings.model}"
        raise UserError(f"{given} does not fit into the memory here; take less of one of them") from error
    machine = _machine(settings) if arguments.what != "count" else "no machine"
    print(f"{arguments.what}, {machine}, torch {torch.__version__}")
    _print_table(rows)
    if arguments.json:
        asked = asdict(settings) | {"device": settings.device.type, "what": arguments.what, "machine": machine}
        strict_json.write(asked | {"rows": rows}, arguments.json)
    if arguments.figure:
        from adaptive_span.reporting.figures import (
            draw_growth,  # matplotlib, which the figures themselves need not wait for
        )

        draw_growth(rows, arguments.figure)


def _machine(settings: Settings) -> str:
    cpu = settings.device.type == "cpu"
    return f"CPU with {torch.get_num_threads()} threads" if cpu else torch.cuda.get_device_name()


def _measure(arguments: argparse.Namespace, settings: Settings) -> dict[str, Row]:
    if arguments.what in PROJECT:
        from adaptive_span.benchmark import project  # and with it all that a training needs

        return getattr(project, arguments.what)(settings, arguments.repeats)
    if arguments.what == "count":
        from adaptive_span.benchmark import counting  # and with it triton

        return counting.table(settings, arguments.split, CARDS[arguments.gpu])
    names = arguments.attention or _all_that_run(settings)
    if arguments.what == "growth":
        return costs.growth(settings, names, arguments.repeats, not arguments.no_memory)
    beside = {"step": ["none"], "evaluate": ["dense training"]}.get(arguments.what, [])
    if arguments.what == "step" and arguments.dtype == "bf16" and "dense" in names:
        beside.append(costs.OTHER_PRECISION)
    return costs.table(arguments.what, settings, [*names, *beside], arguments.repeats, not arguments.no_memory)


def _all_that_run(settings: Settings) -> list[str]:
    config = profiles.sizes(settings.model)
    why_not = why_not_fused(settings.device, config.hidden_size // config.num_heads, settings.dtype)
    return ["dense", "banded"] if why_not else ["dense", "banded", "fused"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m adaptive_span.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=(*costs.KINDS, "growth", "count", *PROJECT))
    parser.add_argument("--model", choices=profiles.MODELS, help="base, of count large")
    parser.add_argument("--batch-size", "--rows", type=int, help="rows of each process; 2, of count 64")
    parser.add_argument("--gpu", default="h200", choices=CARDS, help="of `count`: for which to compute times; h200")
    parser.add_argument("--split", type=int, default=1, help="of `count`: slices of the rows; 1")
    parser.add_argument("--profile", default="paper", choices=profiles.PROFILES, help="the heads' spans; paper")
    parser.add_argument("--layer", type=int, help="of `attention`, counted from 1; all of them")
    parser.add_argument("--dropout", type=float, help="0, of count 0.4")
    parser.add_argument("--attention", nargs="+", choices=ATTENTIONS[1:], help="ways to compare; all that run here")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="of matrix products; fp32, of count bf16")
    parser.add_argument("--repeats", type=int, default=5, help="5")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    parser.add_argument("--no-memory", action="store_true", help="leave out the column that needs a process of its own")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--figure", type=Path, help="of `growth`: draw it there")
    arguments = parser.parse_args()
    usual = USUAL_COUNT if arguments.what == "count" else USUAL
    for flag, value in usual.items():
        if getattr(arguments, flag) is None:
            setattr(arguments, flag, value)
    layers = profiles.sizes(arguments.model).num_layers
    if arguments.layer is not None and not 1 <= arguments.layer <= layers:
        parser.error(f"--layer {arguments.layer} is not one of the {layers} of --model {arguments.model}")
    for flag, most in (("repeats", 10**6), ("batch_size", 2**31 - 1), ("split", 2**31 - 1)):
        if problem := Range(1, most)(getattr(arguments, flag)):
            parser.error(f"--{flag.replace('_', '-')} {getattr(arguments, flag)} {problem}")
    if not 0 <= arguments.dropout < 1:
        parser.error(f"--dropout {arguments.dropout} must be at least 0 and below 1")
    for path in (arguments.json, arguments.figure):
        if path is not None and not path.parent.is_dir():
            parser.error(f"there is no folder {path.parent} for {path}")
    if arguments.batch_size % arguments.split:
        parser.error(f"--split {arguments.split} does not divide --batch-size {arguments.batch_size}")
    for flag in ("split", "gpu"):
        if arguments.what != "count" and getattr(arguments, flag) != parser.get_default(flag):
            parser.error(f"--{flag} is for count, not for {arguments.what}")
    if arguments.layer is not None and arguments.what != "attention":
        parser.error(f"--layer is for attention, not for {arguments.what}")
    for flag in ("profile", "dropout", "attention", "dtype"):
        if arguments.what in PROJECT and getattr(arguments, flag) != USUAL.get(flag, parser.get_default(flag)):
            parser.error(f"--{flag} does not go with {arguments.what}")
    if arguments.figure and (arguments.what != "growth" or arguments.no_memory):
        parser.error("--figure is for growth, with the memory that --no-memory leaves out")
    return arguments


def _print_table(rows: dict[str, Row]) -> None:
    columns, width = list(next(iter(rows.values()))), max(16, *map(len, rows))
    print(f"{'':{width}}" + "".join(f"{column:>20}" for column in columns))
    for name, row in rows.items():
        cells = ["–" if row[column] is None else f"{row[column]:.4g}" for column in columns]
        print(f"{name:{width}}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    with exit_codes():
        main()
