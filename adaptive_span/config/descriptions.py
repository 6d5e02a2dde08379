"""Read what each key of the configuration means from the docstring under its field.

The help of the commands, the comments in `conf/` and the page of all keys in the documentation come from here.
"""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from adaptive_span.config.checks import LONG, OneOf, Range
from adaptive_span.config.checks import MISSING as FROM_CONF


@dataclass(frozen=True)
class Key:
    """One key of the configuration."""

    type: str
    """Like `int`, `list of int`, `str or null`."""
    default: Any
    """Value of the field, or ??? where a file of conf/ has to give one."""
    choices: tuple[str, ...]
    """The allowed values. Empty: they are not a few words."""
    bounds: str
    """The range of a number, like `≥ 0, < 1`. Empty: all of the type."""
    meaning: str
    """The docstring, in one line."""

    @property
    def unexplained(self) -> tuple[str, ...]:
        """Return the choices, unless the meaning explains each of them."""
        return () if all(f"{word}:" in self.meaning for word in self.choices) else self.choices


def describe(schema: type, prefix: str = "") -> dict[str, Key]:
    """Describe every key below a dataclass, under its dotted name."""
    return dict(_described(schema, prefix))


def groups(schema: type) -> dict[str, str]:
    """Return the meaning of every field of a dataclass that holds keys of its own."""
    return {name: _docstrings(schema)[name] for name, hint in get_type_hints(schema).items() if is_dataclass(hint)}


def _described(schema: type, prefix: str) -> Iterator[tuple[str, Key]]:
    hints, meanings = get_type_hints(schema, include_extras=True), _docstrings(schema)
    for field in fields(schema):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        if is_dataclass(hint):
            yield from _described(hint, f"{name}.")  # type: ignore[arg-type]
        else:
            yield name, Key(_type(hint), _default(field), _choices(hint), _bounds(hint), meanings[field.name])


@cache
def _docstrings(schema: type) -> dict[str, str]:
    """Return the string literal under each field, which Python itself does not keep."""
    body = ast.parse(inspect.getsource(schema)).body[0].body  # type: ignore[attr-defined]
    docstrings: dict[str, str] = {}
    for base in filter(is_dataclass, schema.__bases__):
        docstrings |= _docstrings(base)
    for node, below in pairwise(body):
        match node, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docstrings[name] = " ".join(text.split())
    return docstrings


def _type(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        return _type(get_args(hint)[0])
    if type(None) in get_args(hint):
        return f"{' or '.join(_type(arm) for arm in get_args(hint) if arm is not type(None))} or null"
    if get_origin(hint) is list:
        return f"list of {_type(*get_args(hint))}"
    return "mapping" if get_origin(hint) is dict else str(hint.__name__)


def _rules(hint: Any) -> Iterator[Any]:
    """Yield the rules of a type and of the types within it."""
    yield from getattr(hint, "__metadata__", ())
    for inner in get_args(hint):
        yield from _rules(inner)


def _choices(hint: Any) -> tuple[str, ...]:
    return next((tuple(rule.choices) for rule in _rules(hint) if isinstance(rule, OneOf)), ())


def _bounds(hint: Any) -> str:
    for rule in _rules(hint):
        if isinstance(rule, Range):
            low = f"{'>' if rule.above else '≥'} {rule.least:,}"
            return low if rule.most >= LONG else f"{low}, {'<' if rule.below else '≤'} {rule.most:,}"
    return ""


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return FROM_CONF if field.default is MISSING else field.default
