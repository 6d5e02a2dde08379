"""Fill the page of all keys from the configuration: type, default, and what the docstring under each field says."""

from typing import Any

from adaptive_span.config.checks import MISSING
from adaptive_span.config.descriptions import Key, describe, groups
from adaptive_span.config.evaluate_schema import EvaluateConfig
from adaptive_span.config.fit_schema import FitConfig
from adaptive_span.config.generate_schema import GenerateConfig
from adaptive_span.config.schema import Config

MARKER = "<!-- every key -->"
HEADER = ["| key | type | default | meaning |", "|---|---|---|---|"]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the tables in the place of the marker."""
    return markdown.replace(MARKER, every_key()) if page.file.src_uri == "keys.md" else markdown


def every_key() -> str:
    """Return a table for each part of the configuration of a training, and one for each other command."""
    training = describe(Config)
    tables = [
        table(group, {name: key for name, key in training.items() if name.startswith(f"{group}.")})
        for group in groups(Config)
    ]
    tables.append(table("top level", {name: key for name, key in training.items() if "." not in name}))
    commands = {"evaluate": EvaluateConfig, "generate": GenerateConfig, "fit": FitConfig}
    for command, config in commands.items():
        tables.append(table(command, {name: key for name, key in describe(config).items() if "." not in name}))
    return "\n\n".join(tables)


def table(title: str, keys: dict[str, Key]) -> str:
    """Return a heading, and a row per key."""
    rows = [f"| `{name}` | {kind(key)} | {default(key)} | {key.meaning} |" for name, key in keys.items()]
    return "\n".join([f"## {title}", "", *HEADER, *rows])


def kind(key: Key) -> str:
    """Return a type for people, with the values that are allowed."""
    if key.choices:
        return " ".join(f"`{word}`" for word in key.choices) + (", or null" if key.type.endswith("null") else "")
    return f"{key.type} {key.bounds}".strip()


def default(key: Key) -> str:
    if key.default in ([], {}):
        return "empty"
    return "" if key.default == MISSING else f"`{'null' if key.default is None else str(key.default).lower()}`"
