"""Where a rank was when it made no step any more."""

import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Self


class Watchdog:
    """While it is entered, print this rank's stack once, as soon as `seconds` have passed without a step."""

    def __init__(self, rank: int, seconds: float):
        self.rank, self.seconds = rank, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.step()

    def step(self) -> None:
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        self.step()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while (left := self._last + self.seconds - time.monotonic()) > 0:
            if self._ended.wait(left):
                return
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        stack = "".join(traceback.format_stack(frame))
        print(
            f"rank {self.rank} has made no step for {self.seconds:.0f} seconds:\n{stack}", file=sys.stderr, flush=True
        )
