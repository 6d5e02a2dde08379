"""Print where a rank was when it stopped making steps."""

import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Self


class Watchdog:
    """Print this rank's stack once `seconds` have passed without a step, while it is entered."""

    def __init__(self, rank: int, seconds: float):
        self.rank, self.seconds = rank, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.step()

    def step(self) -> None:
        """Note that a step begins."""
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
