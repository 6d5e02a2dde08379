"""Which values a key of the configuration may have, written beside its type, and the sentence for one that it may not.

    num_layers: Annotated[int, Range(1, 10_000)]

A rule is a function of a value that returns what is wrong with it, or None. `check` asks the rules of every field.
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
    """Numbers from `least` to `most`, these two included unless `above` or `below` leaves them out."""

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

    words: Iterable[str]

    def __call__(self, value: str) -> str | None:
        words = list(self.words)
        return None if value in words else f"must be one of {', '.join(words)}{did_you_mean(value, words)}"


@dataclass(frozen=True)
class Pattern:
    """Text that matches a regular expression, which `words` explain."""

    pattern: str
    words: str

    def __call__(self, value: str) -> str | None:
        return None if re.fullmatch(self.pattern, value) else f"must be {self.words}"


def path(value: str) -> str | None:
    """No file system takes longer names."""
    longest = max(len(os.fsencode(name)) for name in value.split("/"))
    return f"holds a name of {longest} bytes, but a file's or folder's has at most 255" if longest > 255 else None


def check(values: Any, prefix: str = "") -> None:
    """Raise `UserError` that names all fields of a dataclass that have no value, or the first whose value is not
    allowed."""
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


def without_value(keys: Sequence[str]) -> str:
    given = " ".join(f"{key}=…" for key in keys)
    return f"{', '.join(keys)} {'has' if len(keys) == 1 else 'have'} no value; give {given}"


def kind(hint: Any) -> str:
    """Return a type in words."""
    kinds = [each for each in _arms(hint) if each is not NoneType]
    words = " or ".join(KINDS.get(each, str(each)) for each in kinds)
    return f"{words}, or null" if NoneType in _arms(hint) else words


def _missing(values: Any, prefix: str) -> list[str]:
    found: list[str] = []
    for field in fields(values):
        value = getattr(values, field.name)
        if is_dataclass(value):
            found += _missing(value, f"{prefix}{field.name}.")
        elif isinstance(value, str) and value == MISSING:
            found.append(f"{prefix}{field.name}")
    return found


def _arms(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union; of another type, itself."""
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
    """Raise where a rule is broken. `hint` may be annotated, a union, a list or a dict."""
    if get_origin(hint) is Annotated:
        base, *own = get_args(hint)
        return _check(key, value, base, [*rules, *own])
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
