"""Run a training step as one CUDA graph: its thousands of launches are recorded once, and then launched together.

Small steps are bound by the host, which takes 30 to 40 µs to launch a kernel that runs for 5. A graph has no such cost.
What it records is the work on one set of addresses: inputs are copied to where they were, and results stay where they
are. Nothing is computed while it is recorded.
"""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from adaptive_span.terminal.printing import print_line

Result = TypeVar("Result")


def choose(asked: str, device: torch.device) -> tuple[bool, str]:
    """Choose whether steps are recorded.

    Args:
        asked: `hardware.graphs`.
        device: Where they run.

    Returns:
        The choice, and the reason, for people.
    """
    if device.type != "cuda":
        return False, "no GPU that records them"
    if asked == "off":
        return False, "as asked for"
    if torch.version.hip is not None:
        return False, "untested on ROCm"
    return True, "a step is launched as a whole"


class StepGraph:
    """Record one function, for as long as what decides the sizes of its tensors stays the same."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Any = None
        self._refused = False
        self.replays = 0

    def run(self, key: Hashable, anywhere: Callable[[], Result], in_place: Callable[[], Result]) -> Result:
        """Run a function once: `anywhere` launch by launch, or the recording of `in_place`.

        Both compute the same. `in_place` finds its inputs at the same addresses as long as `key` is the same, and the
        recording's result is overwritten by the next run. The first run of a key is launch by launch, so that kernels
        are compiled and libraries are loaded before the second one is recorded.
        """
        if self._refused or key != self._key:
            self.forget()
            self._key = key
            return anywhere()
        graph = self._graph or self._record(in_place)
        if graph is None:
            return anywhere()
        graph.replay()
        self.replays += 1
        result: Result = self._result
        return result

    def forget(self) -> None:
        """Free the recording's memory."""
        self._key = self._graph = self._result = None

    def _record(self, function: Callable[[], object]) -> torch.cuda.CUDAGraph | None:
        """Return the graph; print why there is none where torch refuses."""
        graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[torch.cuda.current_device()]
        before = generator.clone_state()
        try:
            # Other threads, such as one that watches over NCCL, may keep calling CUDA meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._result = function()
        except RuntimeError as error:
            self.forget()
            self._refused = True
            generator.graphsafe_set_state(before)  # it would wait for the end of a recording for ever
            reason = str(error).splitlines()[0]
            warning = f"the step cannot be recorded as a CUDA graph ({reason}); kernels are launched one by one"
            print_line(f"warning: {warning}")
            return None
        self._graph = graph
        return graph
