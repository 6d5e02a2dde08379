"""Ask git which code this is."""

import subprocess
from pathlib import Path

from adaptive_span.config.places import PACKAGE


def commit_and_change() -> tuple[str | None, bool | None]:
    """Return the commit of this package, and whether its files differ from it; None where that is unknown."""
    kept = PACKAGE.parent / "commit"  # of a snapshot, beside what differed from it
    if kept.is_file():
        return kept.read_text().strip(), (PACKAGE.parent / "changes.diff").stat().st_size > 0
    if git(PACKAGE, "ls-files", "--error-unmatch", "__init__.py") is None:  # installed within another project
        return None, None
    return (git(PACKAGE, "rev-parse", "HEAD") or b"").decode().strip(), bool(git(PACKAGE, "diff", "HEAD", "--stat"))


def git(directory: Path, *arguments: str) -> bytes | None:
    """Return the output of a git command in the tree around a directory; None where there is no git, or no tree."""
    try:
        result = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True)
    except FileNotFoundError:
        return None
    return result.stdout if result.returncode == 0 else None
