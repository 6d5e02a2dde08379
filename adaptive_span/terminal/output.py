"""Standard output and standard error that a program survives.

`| head` closes a pipe once it has read enough, and a terminal may be closed. Neither is a reason to lose a training.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import ClassVar, TextIO

from adaptive_span.errors import UserError

READER_GONE = (errno.EPIPE, errno.EIO)  # of a pipe; of a terminal


class Output(io.TextIOBase):
    """A stream that discards what is written once its reader has gone."""

    notice: ClassVar[str] = ""  # printed to standard error once nobody reads standard output; empty: nothing is

    def __init__(self, stream: TextIO):
        self.stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream."""
        return self.stream.encoding

    def fileno(self) -> int:
        return self.stream.fileno()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._outlived():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._outlived():
            self.stream.flush()

    @contextmanager
    def _outlived(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            descriptor = self.fileno()
            with open(os.devnull, "w") as nowhere:  # for what is still buffered, which the interpreter flushes at exit
                os.dup2(nowhere.fileno(), descriptor)
            if error.errno not in READER_GONE:
                raise UserError(f"the output cannot be written ({error.strerror}); free some space") from error
            if Output.notice and descriptor == 1:
                print(f"warning: nobody reads the output any more; {Output.notice}", file=sys.stderr, flush=True)


@contextmanager
def outlived() -> Iterator[None]:
    """Let a program run to its end, with its own exit code, although the reader of its output has gone."""
    with redirect_stdout(Output(sys.stdout)) as out, redirect_stderr(Output(sys.stderr)) as problems:
        try:
            yield
        finally:
            out.flush()
            problems.flush()
