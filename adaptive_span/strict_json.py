"""JSON that every reader takes: no NaN, no infinity; a file appears whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from adaptive_span.errors import UserError


def dumps(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON. Raises `ValueError` for a number that is not finite, which JSON does not know."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent)


def write(value: Any, path: Path) -> None:
    """Write `value` to `path` atomically: a reader, or a crash, finds the old file or the new one."""
    text = dumps(value, indent=1) + "\n"
    temporary = path.with_name(path.name + ".writing")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error.strerror}); free some space, or write elsewhere") from error
