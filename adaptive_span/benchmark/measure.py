"""Measure one thing, print the table, and write it where it is asked for."""

import argparse
import re
from dataclasses import asdict
from importlib.util import find_spec

import torch

from adaptive_span.attention.dispatch import why_not_fused
from adaptive_span.benchmark import profiles, workloads
from adaptive_span.benchmark.cost_model import CARDS
from adaptive_span.benchmark.names import PROJECT, TRANSFORMERS
from adaptive_span.benchmark.workloads import Row, Settings
from adaptive_span.errors import UserError
from adaptive_span.hardware.precision import EMULATED, is_emulated
from adaptive_span.storage import strict_json

NO_MEMORY = "can't allocate memory|[Ss]torage size calculation overflowed|numel: integer multiplication overflow"


def measure(arguments: argparse.Namespace) -> None:
    """Measure what the arguments of the command ask for, and print a table of it.

    Raises:
        UserError: The model does not fit into memory, or a file cannot be written.
    """
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
        from adaptive_span.benchmark.figures import draw_growth  # matplotlib

        draw_growth(rows, f"{settings.model}, {settings.batch_size} rows, {machine}", arguments.figure)


def _machine(settings: Settings) -> str:
    cpu = settings.device.type == "cpu"
    return f"CPU with {torch.get_num_threads()} threads" if cpu else torch.cuda.get_device_name()


def _measure(arguments: argparse.Namespace, settings: Settings) -> dict[str, Row]:
    if arguments.what in PROJECT:
        from adaptive_span.benchmark import project  # and with it all that a training needs

        rows: dict[str, Row] = getattr(project, arguments.what)(settings, arguments.repeats)
        return rows
    if arguments.what == "count":
        from adaptive_span.benchmark import counting  # and with it triton

        return counting.table(settings, arguments.split, CARDS[arguments.gpu])
    if arguments.what == "generate":
        from adaptive_span.benchmark import generation  # and with it what prints

        if arguments.tokens is not None:
            return generation.steadiness(settings, arguments.tokens)
        return generation.table(settings, arguments.repeats)
    if arguments.what in TRANSFORMERS:
        if find_spec("transformers") is None:
            raise UserError(f"benchmark {arguments.what} needs transformers; pip install 'adaptive-span[hf]'")
        from adaptive_span.benchmark import fitting, transformers_cache

        if arguments.what == "spans":
            return transformers_cache.table(settings, arguments.context, arguments.repeats)
        return fitting.table(settings, arguments.context, arguments.repeats, not arguments.no_memory)
    names = arguments.attention or _all_that_run(settings)
    if arguments.what == "growth":
        return workloads.growth(settings, names, arguments.repeats, not arguments.no_memory)
    beside = {"step": ["none"], "evaluate": ["dense training"]}.get(arguments.what, [])
    if arguments.what == "step" and arguments.dtype == "bf16" and "dense" in names:
        beside.append(workloads.OTHER_PRECISION)
    return workloads.table(arguments.what, settings, [*names, *beside], arguments.repeats, not arguments.no_memory)


def _all_that_run(settings: Settings) -> list[str]:
    config = profiles.sizes(settings.model)
    why_not = why_not_fused(settings.device, config.head_size, settings.dtype)
    return ["dense", "banded"] if why_not else ["dense", "banded", "fused"]


def _print_table(rows: dict[str, Row]) -> None:
    columns, width = list(next(iter(rows.values()))), max(16, *map(len, rows))
    print(f"{'':{width}}" + "".join(f"{column:>20}" for column in columns))
    for name, row in rows.items():
        cells = ["–" if row[column] is None else f"{row[column]:.4g}" for column in columns]
        print(f"{name:{width}}" + "".join(f"{cell:>20}" for cell in cells))
