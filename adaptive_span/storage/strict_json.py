"""Write JSON that every reader takes: no NaN, no infinity, and a file that is whole or absent."""

import json
from pathlib import Path
from typing import Any

from adaptive_span.storage.writing import atomic_write


def dumps(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON.

    Raises:
        ValueError: It holds a number that is not finite, which JSON does not know.
    """
    return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent)


def write(value: Any, path: Path, indent: int | None = 1) -> None:
    """Write `value` to `path` atomically; in one line with `indent=None`.

    Raises:
        UserError: The disk does not take it.
    """
    text = dumps(value, indent) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
