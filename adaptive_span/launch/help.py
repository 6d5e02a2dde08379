"""List every key of a configuration with its value and its meaning, for `--help`."""

import shutil
from collections.abc import Iterator
from textwrap import wrap
from typing import Any

from omegaconf import DictConfig, OmegaConf

from adaptive_span.config.descriptions import Key, describe, groups

MARGIN = 34  # characters in front of the meanings


def register(schema: type) -> None:
    """Let the templates of `conf/hydra/help/` write `${keys:}` where the list belongs."""

    def keys(*, _root_: DictConfig) -> str:
        return every_key(schema, _root_).replace("$", "$$")  # Hydra fills in the template once more

    OmegaConf.register_new_resolver("keys", keys, replace=True)


def every_key(schema: type, composed: DictConfig) -> str:
    """List the keys of a dataclass by group, with their values in the composed configuration."""
    values, described, headings = OmegaConf.to_container(composed), describe(schema), groups(schema)
    lines: list[str] = []
    for group in dict.fromkeys(name.rpartition(".")[0] for name in described):
        lines += [""] if lines else []
        lines += [f"{group}: {_plain(headings[group])}"] if group else []
        for name, key in described.items():
            if name.rpartition(".")[0] == group:
                lines += _lines(f"  {name}={_setting(values, name)}", key)
    return "\n".join(lines)


def _lines(setting: str, key: Key) -> Iterator[str]:
    width, meaning = _width(), _plain(key.meaning)
    if key.unexplained:
        meaning += f" One of {', '.join(key.unexplained)}."
    if len(setting) >= MARGIN:
        yield from wrap(setting, width, subsequent_indent="    ", break_on_hyphens=False)
        setting = ""
    first, *rest = wrap(meaning, width - MARGIN, break_on_hyphens=False)
    yield setting.ljust(MARGIN) + first
    yield from (" " * MARGIN + line for line in rest)


def _width() -> int:
    return max(80, min(120, shutil.get_terminal_size((120, 24)).columns))


def _plain(meaning: str) -> str:
    return meaning.replace("`", "")


def _setting(values: Any, name: str) -> str:
    for part in name.split("."):
        values = values[part]
    return _word(values)


def _word(value: Any) -> str:
    """Write a value as the command line reads it."""
    match value:
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case list():
            return f"[{','.join(map(_word, value))}]"
        case dict():
            return f"{{{','.join(f'{name}:{_word(each)}' for name, each in value.items())}}}"
        case "":
            return "''"
        case _:
            return str(value)
