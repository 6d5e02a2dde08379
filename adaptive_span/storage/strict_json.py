"""JSON that every reader takes: no NaN, no infinity; a file appears whole or not at all."""

import json
from pathlib import Path
from typing import Any

from adaptive_span.storage.writing import whole


def dumps(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON. Raises `ValueError` for a number that is not finite, which JSON does not know."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent)


def write(value: Any, path: Path) -> None:
    """Write `value` to `path` atomically. Raises `UserError` where the disk does not take it."""
    text = dumps(value, indent=1) + "\n"
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
