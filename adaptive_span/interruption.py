"""SIGTERM and Ctrl-C as a request to save and stop after the step at hand."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from adaptive_span.distributed import Process


class Interruption:
    """While it is entered, the first signal is noted instead of ending the process; a second Ctrl-C ends it."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, process: Process) -> int:
        """The signal that some process has received, by now known to all of them; 0 where there is none."""
        return process.max(self.received)
