"""Read and write the arguments of a command: as people and shells write them, and as Hydra reads them.

Nothing here imports Hydra, so that a training can print a command.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from adaptive_span.config.fit_schema import FitConfig
from adaptive_span.config.places import CHECKOUT

PATHS = (
    "data.directory data.file data.path data.tokenizer train.init_from train.continue_from run.dir run checkpoint "
    "output out prompt_file"
).split()
PROGRAMS = {"train": "launch.py", "evaluate": "evaluate.py"}  # at the top of a checkout
SETTING = re.compile(r"(\+{0,2})([\w.]+)=(.*)", re.DOTALL)


def complete(arguments: Sequence[str], schema: type, sweeping: bool) -> list[str]:
    """Return a command's arguments as Hydra shall read them: text quoted, no fine-tuning where only steps are given.

    Args:
        arguments: As the shell passed them on.
        schema: The configuration's dataclass.
        sweeping: Whether a comma separates values of several runs.
    """
    if schema is FitConfig:  # where `model` is no group of conf/, though Hydra takes it for one
        arguments = [re.sub(r"^model=", "model.name=", argument) for argument in arguments]
    texts = {key for key, kind in keys(schema).items() if kind == (str | None) or key in PATHS}
    return end_with_steps([_with_text_quoted(argument, texts, sweeping) for argument in arguments])


def end_with_steps(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a run; `train.steps` alone also drops the recipe's fine-tuning phase."""
    given = {match[2] for argument in arguments if (match := SETTING.fullmatch(argument))}
    alone = "train.steps" in given and "train.finetune_steps" not in given
    return [*arguments, "train.finetune_steps=0"] if alone else [*arguments]


def is_sweep(arguments: Sequence[str]) -> bool:
    """Return whether Hydra looks for several runs, so that a comma separates values, even without -m."""
    return any(re.match(r"hydra\.mode=MULTIRUN|\+?(sweep|search)=|hardware=slurm", argument) for argument in arguments)


def setting(key: str, value: str) -> str:
    """Return `key=value` as the command line reads it back. A shell may need quotes around it."""
    return f"{key}={quoted(value)}" if "," in value or _is_for_hydra(value, sweeping=True) else f"{key}={value}"


def pasted(name: str, *arguments: str) -> str:
    """Return a command to paste into a shell in the current directory. It runs `train` or `evaluate`."""
    if CHECKOUT is None:
        return shlex.join(["adaptive-span", name, *arguments])
    program = CHECKOUT / PROGRAMS[name]
    is_here = Path(program.name).is_file() and program.samefile(program.name)
    return shlex.join(["python", program.name if is_here else str(program), *arguments])


def quoted(value: str) -> str:
    """Return text as Hydra reads it back: backslashes count before a quote, before the end, and before ${."""
    text = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return "'" + text.replace("${", "\\${") + "'"


def keys(schema: type) -> dict[str, Any]:
    """Return every key of a configuration, dotted, with its type."""
    hints = get_type_hints(schema)
    types: dict[str, Any] = {}
    for field in fields(schema):
        hint = hints[field.name]
        if is_dataclass(hint):
            types |= {f"{field.name}.{key}": kind for key, kind in keys(hint).items()}  # type: ignore[arg-type]
        else:
            types[field.name] = hint
    return types


def _with_text_quoted(argument: str, texts: set[str], sweeping: bool) -> str:
    match = SETTING.fullmatch(argument)
    if not match or match[2] not in texts or _is_for_hydra(match[3], sweeping):
        return argument
    values = [part.strip() for part in match[3].split(",")] if sweeping else [match[3]]
    return f"{match[1]}{match[2]}={','.join(map(quoted, values))}"


def _is_for_hydra(value: str, sweeping: bool) -> bool:
    """Return whether a value is no plain text: null, an interpolation, quoted, escaped, or a choice in a sweep."""
    if value == "null" or "${" in value or "\\" in value:
        return True
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return True
    return sweeping and (
        re.match(r"\w+\(", value) is not None or ("," in value and bool(set(value) & set("'\"[](){}")))
    )
