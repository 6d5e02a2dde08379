"""Modules of the user's own, imported for what they register: `plugins=[my_module]`."""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from adaptive_span.errors import UserError, first_line, shown

MODULE = r"[^\W\d]\w*(\.[^\W\d]\w*)*"


def load(names: Sequence[str]) -> None:
    """Import modules, from Python's path and then from the working directory. Call it in every process.

    Raises:
        UserError: One of them is not there, or fails while it is imported.
    """
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(MODULE, name):
            raise UserError(f"plugins={shown(name)} must be the name of a module, like my_module or package.module")
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            import_module(name)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"plugins={name} cannot be imported ({_explanation(name, error)})") from error


def places(names: Sequence[str]) -> list[Path]:
    """Return the files and the packages' folders that modules were imported from, of those in the working directory."""
    files = set()
    for name in names:
        module = sys.modules[name.partition(".")[0]]
        files.add(Path(module.__path__[0] if hasattr(module, "__path__") else str(module.__file__)))
    return sorted(path for path in files if path.parent == Path.cwd())


def _explanation(name: str, error: Exception) -> str:
    """Return what went wrong, and in which line of a file."""
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        return f"there is no module {error.name} in {os.getcwd()}, nor on Python's path; put it there"
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if isinstance(error, SyntaxError) else f", line {last.lineno} of {last.filename}"
    return f"{type(error).__name__}: {first_line(error)}{where}; mend it, or leave it out"
