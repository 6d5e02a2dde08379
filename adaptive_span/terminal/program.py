"""How every program ends, and how it is stopped.

Exit codes: 0, it did what it was asked for. 1, a bug, with its traceback. 2, a user's mistake, in one sentence. 128 +
the signal's number: it was stopped, or one of its processes was.
"""

import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from adaptive_span.errors import UserError
from adaptive_span.terminal.output import outlived
from adaptive_span.terminal.plain_text import one_line, shown

BUG = 1
# By somebody, on purpose: SIGHUP, SIGINT, SIGTERM. In numbers, since Windows, which must be refused, lacks the first.
STOPPED = [128 + number for number in (1, 2, 15)]


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the process with the code that stands for what happened; print errors once."""
    with outlived():
        try:
            _refuse_windows()
            yield
        except KeyboardInterrupt:
            raise SystemExit(128 + signal.SIGINT) from None
        except UserError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        except Exception as error:
            print(shown("".join(traceback.format_exception(error))), file=sys.stderr, end="")
            raise SystemExit(BUG) from None


def _refuse_windows() -> None:
    if sys.platform == "win32":
        raise UserError("this does not run on Windows itself; run it in WSL, the Linux within Windows: wsl --install")


@contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, so that nothing half-made is left behind."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, *hang_up())}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hang_up() -> tuple[signal.Signals, ...]:
    """Return SIGHUP, which a terminal sends when it is closed; or nothing where it is ignored, as `nohup` asks."""
    return () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
