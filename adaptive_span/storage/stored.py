"""Read settings and numbers from files that anybody may have written: YAML, JSON, and typed values within them.

They are text and numbers. Nothing in them names a class, refers to another key or to the environment, or is called.
Every error is a `UserError` that names the file.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import MISSING as REQUIRED
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from adaptive_span.config.checks import MISSING
from adaptive_span.errors import UserError, did_you_mean, first_line, shown

T = TypeVar("T")
LARGEST = 64 << 20  # bytes: far more than any of these files has
LONGEST = 1 << 20  # bytes of a line
BROKEN = (ValueError, OverflowError, RecursionError, yaml.YAMLError)  # of bytes that are no text, no JSON, no YAML


class _Plain(yaml.SafeLoader):
    """YAML without references, of which a short file can make an endless value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to another part of itself")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file."""
    return _parsed(path, lambda text: yaml.load(text, _Plain), dict)


def read_json(path: Path, kind: type[T]) -> T:
    """Return the object, or the list, in a JSON file."""
    return _parsed(path, loads, kind)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of each line. A last line that is not whole, as a killed writer leaves it, is left out."""
    with _opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), 1):
            if not line.endswith(b"\n"):
                if len(line) == LONGEST:
                    raise UserError(f"line {number} of {path} is longer than {LONGEST:,} bytes; {_ADVICE}")
                return
            try:
                value = loads(line.decode())
            except BROKEN as error:
                raise UserError(f"line {number} of {path} is damaged: {first_line(error)}; {_ADVICE}") from None
            if not isinstance(value, dict):
                raise UserError(f"line {number} of {path} is damaged: it holds no object; {_ADVICE}")
            yield value


def loads(text: str) -> Any:
    """Parse strict JSON, in which NaN, infinity and what is too large for a double are errors."""
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)


def lookup(values: dict[str, Any], key: str, hint: Any, where: object) -> Any:
    """Return the value of a key.

    Args:
        values: Where to look.
        key: The key.
        hint: The type that its value must have.
        where: What to call `values` in the message.

    Raises:
        UserError: The key is missing, or its value has another type.
    """
    if key not in values:
        raise UserError(f"{where} lacks the key '{key}'; {_ADVICE}")
    if not is_a(values[key], hint):
        raise UserError(f"{where} has {key}={shortened(values[key])}, which is not {_type_name(hint)}; {_ADVICE}")
    return values[key]


def from_dict(values: Any, schema: type[T], where: object, prefix: str = "") -> T:
    """Rebuild a dataclass from what `asdict` made of it, for example the configuration in a checkpoint.

    Args:
        values: The keys and values.
        schema: The dataclass.
        where: What to call the source in messages.
        prefix: Of the keys, in messages.

    Raises:
        UserError: A key is unknown, or its value has another type.
    """
    hints = get_type_hints(schema)
    if not isinstance(values, dict):
        raise UserError(f"{where} has no {prefix.rstrip('.') or 'configuration'} with keys and values; {_ADVICE}")
    made = {each.name: MISSING for each in fields(schema) if each.default is each.default_factory is REQUIRED}  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in hints:
            alike = did_you_mean(str(key), list(hints))
            raise UserError(
                f"{where} has the key '{prefix}{shortened(key)}', which this version of adaptive-span does not "
                f"know{alike}; update the package, or take a file that this version wrote"
            )
        hint = hints[key]
        if isinstance(hint, type) and is_dataclass(hint):
            made[key] = from_dict(value, hint, where, f"{prefix}{key}.")
        elif is_a(value, hint) or (value == MISSING and _default(schema, key) in (MISSING, REQUIRED)):
            made[key] = value
        elif type(value) is int and abs(value) < 2**63 and is_a("", hint):  # text by now, a number in older files
            made[key] = str(value)
        else:
            raise UserError(f"{where} has {prefix}{key}={shortened(value)}, which is not {_type_name(hint)}; {_ADVICE}")
    return schema(**made)


def is_a(value: Any, hint: Any, depth: int = 0) -> bool:
    """Return whether a value has a type as a configuration writes it, including what containers hold."""
    if hint == list[float] and isinstance(value, list) and {*map(type, value)} <= {int, float}:
        return True  # the same as below, twenty times as fast: a run logs the spans of hundreds of heads
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return depth < 8 and _is_plain(value, depth)
    if origin in (Union, UnionType):
        return any(is_a(value, kind, depth) for kind in inner)
    if origin is list:
        return isinstance(value, list) and all(is_a(item, inner[0], depth + 1) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            is_a(key, inner[0], depth + 1) and is_a(item, inner[1], depth + 1) for key, item in value.items()
        )
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)


def shortened(value: object) -> str:
    """Return a value, cut so that a sentence can hold it."""
    return shown(value, 60)


_ADVICE = "it has been changed or damaged; restore it, or delete it"


def _opened(path: Path) -> Any:
    try:
        if not path.is_file():  # a pipe, a device, a folder
            raise UserError(f"there is no file {path}")
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None


def _parsed(path: Path, parse: Any, kind: type[T]) -> T:
    with _opened(path) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise UserError(f"{path} is larger than {LARGEST:,} bytes; {_ADVICE}")
    try:
        value = parse(content.decode())
    except BROKEN as error:
        raise UserError(f"{path} is damaged: {first_line(error)}; restore it, or delete it") from None
    if not isinstance(value, kind):
        raise UserError(f"{path} holds no {'keys and values' if kind is dict else 'list'}; {_ADVICE}")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refuse(digits)


def _whole(digits: str) -> int:
    value = int(digits)
    float(value)
    return value


def _default(schema: Any, key: str) -> Any:
    return next(field.default for field in fields(schema) if field.name == key)


def _is_plain(value: Any, depth: int) -> bool:
    if isinstance(value, list):
        return all(is_a(item, Any, depth + 1) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_a(item, Any, depth + 1) for key, item in value.items())
    return isinstance(value, str | int | float | NoneType)


def _type_name(hint: Any) -> str:
    """Return a type as people write it."""
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
