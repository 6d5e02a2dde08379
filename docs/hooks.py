"""Fill the page of all keys from the configuration's dataclasses: type, default, and the words beside each field."""

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from adaptive_span.config import schema
from adaptive_span.config.checks import MISSING as MISSING_KEY
from adaptive_span.config.checks import OneOf, Range

MARKER = "<!-- every key -->"
HEADER = ["| key | type | default | meaning |", "|---|---|---|---|"]
LARGEST = 2**31 - 1  # from here on, a bound is no news


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the tables in the place of the marker."""
    return markdown.replace(MARKER, every_key()) if page.file.src_uri == "keys.md" else markdown


def every_key() -> str:
    """Return a table for each part of the configuration of a training, and one for an evaluation."""
    parts = {f.name: f.type for f in fields(schema.Config) if is_dataclass(f.type)}
    tables = [table(name, part, f"{name}.") for name, part in parts.items()]
    tables.append(table("top level", schema.Config, "", set(parts)))
    tables.append(table("evaluate", schema.EvaluateConfig, "", {"data", "hardware"}))
    return "\n\n".join(tables)


def table(title: str, part: Any, prefix: str, without: set[str] = frozenset()) -> str:  # type: ignore[assignment]
    """Return the heading and the rows of one dataclass."""
    meanings, kinds = dict(docs(part)), get_type_hints(part, include_extras=True)
    rows = [
        f"| `{prefix}{field.name}` | {kind(kinds[field.name])} | {default(field)} | {meanings.get(field.name, '')} |"
        for field in fields(part)
        if field.name not in without
    ]
    return "\n".join([f"## {title}", "", *HEADER, *rows])


def docs(part: type) -> Iterator[tuple[str, str]]:
    """Yield the name of each field and its meaning: the string below it, or the comment beside it."""
    source = inspect.getsource(part)
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                yield node.target.id, " ".join(str(below.value.value).split())
            else:
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                yield node.target.id, " ".join(comments[line] for line in lines if line in comments)


def kind(hint: Any) -> str:
    """Return a type for people: what it holds, and which values are allowed."""
    options = [kind(each) for each in get_args(hint) if each is not type(None)]
    if get_origin(hint) is Annotated:
        base, *rules = get_args(hint)
        return next((said for rule in rules if (said := allowed(base, rule))), base.__name__)
    if type(None) in get_args(hint):
        return f"{' or '.join(options)}, or null"
    if get_origin(hint) is list:
        return f"list of {options[0]}"
    return {dict: "mapping"}.get(get_origin(hint), getattr(hint, "__name__", str(hint)))


def allowed(base: type, rule: Any) -> str:
    if isinstance(rule, OneOf):
        return " ".join(f"`{word}`" for word in rule.words)
    if isinstance(rule, Range):
        low = f"{base.__name__} {'>' if rule.above else '≥'} {rule.least:,}"
        return low if rule.most >= LARGEST else f"{low}, {'<' if rule.below else '≤'} {rule.most:,}"
    return ""


def default(field: Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value in ([], {}):
        return "empty"
    return "" if value in (MISSING, MISSING_KEY) else f"`{'null' if value is None else str(value).lower()}`"
