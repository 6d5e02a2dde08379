"""Files that appear whole or not at all, and one sentence where the disk does not take them."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adaptive_span.errors import UserError

WRITING = ".writing"  # the ending of what is not whole yet
REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.ENOENT: "the folder was removed; bring it back",
    errno.EROFS: "make that disk writable",
    errno.EACCES: "allow writing there",
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise as a `UserError` why `path` cannot be written."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "look after that disk")
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): {remedy}, and give the same command again; what "
            f"was saved before is intact"
        ) from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give the path of a file to write, which takes the place of `path` once it is on the disk.

    A reader, or a crash, finds the old file or the new one, never a part of one.
    """
    temporary = path.with_name(path.name + WRITING)
    try:
        with explained(path):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def discard_unfinished(directory: Path) -> None:
    """Remove what a killed process had begun to write in a run's directory."""
    for path in (*directory.glob(f"*{WRITING}"), *directory.glob(f"*/*{WRITING}")):
        path.unlink(missing_ok=True)
