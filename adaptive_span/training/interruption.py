"""SIGTERM, SIGHUP, Ctrl-C and a scheduler's SIGUSR2 as a request to save and stop after the step at hand."""

import os
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from adaptive_span.distributed import Process
from adaptive_span.terminal.program import hang_up

SAVED = "ADAPTIVE_SPAN_SAVED"  # an environment variable: the file that tells whoever sent SIGUSR2 that all is saved
STOPPED = 128 + signal.SIGTERM
AGAIN = 1.0  # seconds: a Ctrl-C reaches a worker from the terminal and, at once, from the process that started it


class Interruption:
    """Note the first signal instead of ending the process, while it is entered. A second Ctrl-C ends it.

    SIGUSR2 announces that a scheduler is about to end the process, and is only heard where whoever started the process
    has blocked it: so it can neither be missed nor do harm while torch is imported or another program is started, both
    of which it would end. It stays pending, and is looked for.
    """

    def __init__(self) -> None:
        self._noted = 0
        self._noted_at = 0.0
        self._is_main = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        numbers = (signal.SIGTERM, signal.SIGINT, *hang_up())
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, SystemExit) and error.code == 128 + signal.SIGUSR2:
            self._park()
            raise SystemExit(STOPPED)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def received(self) -> int:
        """The number of the first signal, 0 where there was none."""
        return self._noted or (signal.SIGUSR2 if signal.SIGUSR2 in signal.sigpending() else 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted and number == signal.SIGINT and time.monotonic() > self._noted_at + AGAIN:
            raise KeyboardInterrupt
        if not self._noted:
            self._noted, self._noted_at = number, time.monotonic()

    def agreed(self, process: Process) -> int:
        """Return the signal that any of the processes has received, the same in all of them; 0 where there is none."""
        self._is_main = process.is_main
        return process.max(self.received)

    def _park(self) -> None:
        """Signal that everything is saved, then wait to be killed. Exiting now would mark the job as finished."""
        if self._is_main and SAVED in os.environ:
            Path(os.environ[SAVED]).touch()
        parent = os.getppid()
        while not self._noted and os.getppid() == parent:
            time.sleep(0.05)
