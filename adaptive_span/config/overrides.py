"""The words of a command: as people and shells write them, as Hydra reads them, and as they can be pasted again.

Nothing here imports Hydra, so that a training can print a command.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from adaptive_span.config.places import CHECKOUT

PATHS = ("data.directory data.file data.path train.init_from train.continue_from run.dir run checkpoint output").split()
PROGRAMS = {"train": "launch.py", "evaluate": "evaluate.py"}  # at the top of a checkout
SETTING = re.compile(r"(\+{0,2})([\w.]+)=(.*)", re.DOTALL)


def complete(words: Sequence[str], schema: type, sweeping: bool) -> list[str]:
    """Return the words of a command as Hydra shall read them."""
    texts = {key for key, kind in keys(schema).items() if kind == (str | None) or key in PATHS}
    return end_with_steps([_with_text_quoted(word, texts, sweeping) for word in words])


def end_with_steps(words: Sequence[str]) -> list[str]:
    """Return the words of a run, without the recipe's fine-tuning phase where steps are given and none of that."""
    given = {match[2] for word in words if (match := SETTING.fullmatch(word))}
    alone = "train.steps" in given and "train.finetune_steps" not in given
    return [*words, "train.finetune_steps=0"] if alone else [*words]


def is_sweep(words: Sequence[str]) -> bool:
    """Return whether a command has Hydra look for several runs, so that a comma parts values, even without -m."""
    return any(re.match(r"hydra\.mode=MULTIRUN|\+?sweep=|hardware=slurm", word) for word in words)


def setting(key: str, value: str) -> str:
    """Return `key=value` as the command line reads it back; a shell may need quotes of its own around it."""
    return f"{key}={quoted(value)}" if "," in value or _is_for_hydra(value, sweeping=True) else f"{key}={value}"


def pasted(name: str, *words: str) -> str:
    """Return a command to paste into a shell, in the current directory, that runs `train` or `evaluate`."""
    if CHECKOUT is None:
        return shlex.join(["adaptive-span", name, *words])
    program = CHECKOUT / PROGRAMS[name]
    is_here = Path(program.name).is_file() and program.samefile(program.name)
    return shlex.join(["python", program.name if is_here else str(program), *words])


def quoted(value: str) -> str:
    """Return a text as Hydra reads it back: backslashes count before a quote, before the end, and before ${."""
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return "'" + text.replace("${", "\\${") + "'"


def keys(schema: type) -> dict[str, Any]:
    """Return every key of a configuration, dotted, with its type."""
    hints = get_type_hints(schema)
    found: dict[str, Any] = {}
    for field in fields(schema):
        hint = hints[field.name]
        if is_dataclass(hint):
            found |= {f"{field.name}.{key}": kind for key, kind in keys(hint).items()}  # type: ignore[arg-type]
        else:
            found[field.name] = hint
    return found


def _with_text_quoted(word: str, texts: set[str], sweeping: bool) -> str:
    match = SETTING.fullmatch(word)
    if not match or match[2] not in texts or _is_for_hydra(match[3], sweeping):
        return word
    values = [part.strip() for part in match[3].split(",")] if sweeping else [match[3]]
    return f"{match[1]}{match[2]}={','.join(map(quoted, values))}"


def _is_for_hydra(value: str, sweeping: bool) -> bool:
    """Return whether a text means more than it says: nothing, an interpolation, what is quoted or escaped already, and,
    in a sweep, a choice."""
    if value == "null" or "${" in value or "\\" in value:
        return True
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return True
    return sweeping and (
        re.match(r"\w+\(", value) is not None or ("," in value and bool(set(value) & set("'\"[](){}")))
    )
