"""Write files whole or not at all, and explain in one sentence why a disk does not take them."""

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
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Raise `UserError`, in place of `OSError`, that says why `path` cannot be written and what to do."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "look after that disk")
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): {remedy}, and give the same command again; what "
            f"was saved before is intact"
        ) from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `path` once it is on the disk.

    A reader, or a crash, finds the old file or the new one, never a part of one.

    Raises:
        UserError: The disk does not take it. The old file stays as it is.
    """
    temporary = path.with_name(path.name + WRITING)
    try:
        with explain_disk_errors(path):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def discard_unfinished(directory: Path) -> None:
    """Remove what a killed process had started to write in a run's directory."""
    for path in (*directory.glob(f"*{WRITING}"), *directory.glob(f"*/*{WRITING}")):
        path.unlink(missing_ok=True)
