"""The code that was submitted, kept beside the run, so that later edits do not reach a job that waits in the queue."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from adaptive_span.config import plugins
from adaptive_span.config.overrides import PROGRAMS
from adaptive_span.config.places import CHECKOUT, CONF, PACKAGE, SWEEPS
from adaptive_span.storage import source_code
from adaptive_span.terminal.plain_text import masked

LEFT_OUT = shutil.ignore_patterns("__pycache__")


def take(directory: Path, modules: Sequence[str] = ()) -> Path:
    """Copy the package, programs and configuration to DIRECTORY/code, with the commit and what differs from it.

    Args:
        directory: Of the run, or of the sweep.
        modules: Plugins, of which those in the working directory are copied too.
    """
    code = directory / "code"
    fresh = directory / "code.writing"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(PACKAGE, fresh / PACKAGE.name, ignore=LEFT_OUT)
    if CHECKOUT:  # else the package holds them
        for name in PROGRAMS.values():
            shutil.copy2(CHECKOUT / name, fresh)
        for folder in (CONF, SWEEPS):
            shutil.copytree(folder, fresh / folder.name, ignore=LEFT_OUT)
    for place in plugins.places(modules):
        if place.is_dir():
            shutil.copytree(place, fresh / place.name, ignore=LEFT_OUT, dirs_exist_ok=True)
        else:
            shutil.copy2(place, fresh)
    commit = source_code.git(PACKAGE, "rev-parse", "HEAD")
    if commit:
        (fresh / "commit").write_bytes(commit)
        changes = (source_code.git(PACKAGE, "diff", "HEAD") or b"").decode(errors="surrogateescape")
        (fresh / "changes.diff").write_bytes(masked(changes).encode(errors="surrogateescape"))
    shutil.rmtree(code, ignore_errors=True)
    fresh.rename(code)
    return code


def setup(code: Path) -> list[str]:
    """Return the lines of a job's script that make Python import that code, whatever the current directory holds."""
    return [f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"]
