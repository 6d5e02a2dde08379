"""The code that was submitted, kept beside the run, so that later edits do not reach a job that waits in the queue."""

import shlex
import shutil
import sys
from pathlib import Path

import adaptive_span
from adaptive_span.storage import source_code
from adaptive_span.terminal.plain_text import masked

LEFT_OUT = shutil.ignore_patterns("__pycache__")


def take(directory: Path) -> Path:
    """Copy the package, programs and configuration to DIRECTORY/code, with the commit and what differs from it."""
    package, program = Path(adaptive_span.__file__).parent, Path(sys.argv[0]).resolve()
    code = directory / "code"
    fresh = directory / "code.writing"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(package, fresh / package.name, ignore=LEFT_OUT)
    for name in (program.name, "evaluate.py"):
        if (program.parent / name).is_file():
            shutil.copy2(program.parent / name, fresh)
    if (program.parent / "conf").is_dir():
        shutil.copytree(program.parent / "conf", fresh / "conf", ignore=LEFT_OUT)
    commit = source_code.git(package, "rev-parse", "HEAD")
    if commit:
        (fresh / "commit").write_bytes(commit)
        changes = (source_code.git(package, "diff", "HEAD") or b"").decode(errors="surrogateescape")
        (fresh / "changes.diff").write_bytes(masked(changes).encode(errors="surrogateescape"))
    shutil.rmtree(code, ignore_errors=True)
    fresh.rename(code)
    return code


def setup(code: Path) -> list[str]:
    """The lines of a job's script after which Python imports that code, whatever lies in the current directory."""
    return [f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"]
