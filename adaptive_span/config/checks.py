"""Check values of the configuration, by rules that stand beside their type.

    num_layers: Annotated[int, Range(1, 10_000)]

A rule is a function of a value that returns what is wrong with it, or None. `check` applies the rules of every field.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from adaptive_span.errors import UserError, did_you_mean, is_control, shown

MISSING: Any = "???"  # the mark of a field that Hydra fills in from conf/
LONG = 2**31 - 1  # of a dimension of tensors, which memory limits further
FP32_MAX, FP32_MIN = 3.4028234663852886e38, 1.1754943508222875e-38  # weights and rates are numbers of this precision

KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list[int]: "a list of whole numbers, like [8,1,1]",
    list[str]: "a list, like [a,b]",
    dict[str, Any]: "names with values, like {exclude: n1}",
}


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`. `above` and `below` leave out these two themselves."""

    least: float
    most: float
    above: bool = False
    below: bool = False

    def __call__(self, value: float) -> str | None:
        low = f"{'above' if self.above else 'at least'} {self.least}"
        high = f"{'below' if self.below else 'at most'} {self.most}"
        is_low = value <= self.least if self.above else value < self.least
        is_high = value >= self.most if self.below else value > self.most
        if (is_low or is_high) and self.most - self.least <= 1:
            return f"must be {low} and {high}"
        return f"must be {low}" if is_low else f"must be {high}" if is_high else None


@dataclass(frozen=True)
class OneOf:
    """One of some words, or of the names in a registry, to which more may be added."""

    choices: Iterable[str]

    def __call__(self, value: str) -> str | None:
        choices = list(self.choices)
        return None if value in choices else f"must be one of {', '.join(choices)}{did_you_mean(value, choices)}"


@dataclass(frozen=True)
class Pattern:
    """Text that matches a regular expression, which `description` puts into words."""

    pattern: str
    description: str

    def __call__(self, value: str) -> str | None:
        return None if re.fullmatch(self.pattern, value) else f"must be {self.description}"


def path(value: str) -> str | None:
    """Return what is wrong with a path: no file system takes names of more than 255 bytes."""
    longest = max(len(os.fsencode(name)) for name in value.split("/"))
    return f"holds a name of {longest} bytes, but a file's or folder's has at most 255" if longest > 255 else None


def check(values: Any, prefix: str = "") -> None:
    """Check all fields of a dataclass, and of the dataclasses within it.

    Args:
        values: The dataclass.
        prefix: Of the keys, in messages.

    Raises:
        UserError: Fields have no value (all of them are named), or a value is not allowed (the first is named).
    """
    if missing := list(_missing(values, prefix)):
        raise UserError(without_value(missing))
    kinds, hints = get_type_hints(type(values)), get_type_hints(type(values), include_extras=True)
    for field in fields(values):
        key, value, hint = f"{prefix}{field.name}", getattr(values, field.name), kinds[field.name]
        if is_dataclass(value):
            check(value, f"{key}.")
        elif not _is_kind(value, hint):
            raise UserError(f"{key}={shown(value)} must be {kind(hint)}")
        else:
            _check(key, value, hints[field.name])


def check_source(program: str, use: str, run: str | None, checkpoint: str | None) -> None:
    """Raise `UserError` unless a program is given either a run or a checkpoint.

    Args:
        program: Its name.
        use: What becomes of the run's best checkpoint: a verb.
        run: A directory.
        checkpoint: A file.
    """
    if (run is None) == (checkpoint is None):
        raise UserError(f"{program} needs one of run=DIR (its best checkpoint {use}) and checkpoint=FILE")


def without_value(keys: Sequence[str]) -> str:
    """Return the sentence for keys that need a value."""
    given = " ".join(f"{key}=…" for key in keys)
    return f"{', '.join(keys)} {'has' if len(keys) == 1 else 'have'} no value; give {given}"


def kind(hint: Any) -> str:
    """Return a type in words, for messages."""
    kinds = [each for each in _arms(hint) if each is not NoneType]
    words = " or ".join(KINDS.get(each, str(each)) for each in kinds)
    return f"{words}, or null" if NoneType in _arms(hint) else words


def _missing(values: Any, prefix: str) -> list[str]:
    missing: list[str] = []
    for field in fields(values):
        value = getattr(values, field.name)
        if is_dataclass(value):
            missing += _missing(value, f"{prefix}{field.name}.")
        elif isinstance(value, str) and value == MISSING:
            missing.append(f"{prefix}{field.name}")
    return missing


def _arms(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union; of another type, that type itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_kind(value: Any, hint: Any) -> bool:
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if len(_arms(hint)) > 1:
        return any(_is_kind(value, arm) for arm in _arms(hint))
    if hint is Any:
        return True
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_is_kind(each, *get_args(hint)) for each in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_is_kind(each, get_args(hint)[1]) for each in value.values())
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _check(key: str, value: Any, hint: Any, rules: Sequence[Callable[[Any], str | None]] = ()) -> None:
    """Raise `UserError` if a value breaks a rule. `hint` may be annotated, a union, a list or a dict."""
    if get_origin(hint) is Annotated:
        base, *inner_rules = get_args(hint)
        return _check(key, value, base, [*rules, *inner_rules])
    if len(arms := _arms(hint)) > 1:
        return _check(key, value, next(arm for arm in arms if _is_kind(value, arm)), rules)
    if value is None:
        return None
    if get_origin(hint) is list:
        for each in value:
            _check(key, each, *get_args(hint))
    elif get_origin(hint) is dict:
        for name, each in value.items():
            _check(f"{key}.{name}", each, get_args(hint)[1])
    for rule in (*COMMON.get(hint, ()), *rules):
        if problem := rule(value):
            raise UserError(f"{key}={shown(value)} {problem}")
    return None


def _single_precision(value: float) -> str | None:
    if not math.isfinite(value):
        return "must be a number that is finite"
    if abs(value) > FP32_MAX:
        return f"is beyond single precision, whose numbers end at {FP32_MAX:.2g}"
    if 0 < abs(value) < FP32_MIN:
        return f"is below single precision, whose numbers begin at {FP32_MIN:.2g}"
    return None


def _text(value: str) -> str | None:
    if not value:
        return "is empty; give it a value, or leave it out"
    if any(map(is_control, value)):
        return "holds a line break, another control character, or a byte that is not UTF-8; take it out"
    return f"is {len(value):,} characters long, but may have 4,096" if len(value) > 4096 else None


COMMON: dict[Any, Sequence[Callable[[Any], str | None]]] = {float: (_single_precision,), str: (_text,)}
