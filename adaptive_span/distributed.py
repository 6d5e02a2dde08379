"""The one place that knows ranks: starting processes, and what they tell each other."""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from adaptive_span.config import HardwareConfig
from adaptive_span.errors import UserError


@dataclass(frozen=True)
class Process:
    """One of the processes that work on a run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes, logs and shows progress."""
        return self.rank == 0

    def share(self, size: int) -> slice:
        """This process's part of `size` rows."""
        return slice(self.rank * size // self.world_size, (self.rank + 1) * size // self.world_size)

    def sum(self, numbers: list[float]) -> list[float]:
        """Added up over the processes, in double precision, on the host."""
        if self.world_size == 1:
            return numbers
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def max(self, number: int) -> int:
        if self.world_size == 1:
            return number
        highest = torch.tensor(number)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        return int(highest)

    def gather_rows(self, tensor: Tensor) -> Tensor | None:
        """(b, …) of every process → (B, …) on the host of the main process; None in the others."""
        tensor = tensor.cpu()
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)] if self.is_main else None
        dist.gather(tensor.contiguous(), parts)
        return torch.cat(parts) if parts else None

    def gather(self, thing: Any) -> list[Any]:
        """One thing a process → the list of them, by rank, in the main process; the others get an empty list."""
        if self.world_size == 1:
            return [thing]
        things: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(thing, things)
        return things or []

    def barrier(self) -> None:
        self.max(0)


def pick_device(hardware: HardwareConfig, local_rank: int = 0) -> torch.device:
    wanted = hardware.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "hardware.device=cuda, but torch sees no GPU on this machine; take hardware=cpu or hardware=auto"
        )
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"hardware.processes={local_rank + 1} or more, but this machine has {torch.cuda.device_count()} GPU(s); "
            f"take hardware.processes={torch.cuda.device_count()} or fewer"
        )
    return torch.device("cuda", local_rank)


def autocast(hardware: HardwareConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 where `hardware.precision=bf16`; parameters and updates stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16) if hardware.precision == "bf16" else nullcontext()


@contextmanager
def process_group(hardware: HardwareConfig) -> Iterator[Process]:
    """This process among its peers, as torchrun or `launch` described it in the environment; or alone."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = pick_device(hardware, local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Process(0, 1, device)
        return
    # Each process would start a thread a core: N processes would share each core among N threads.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"])))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Process(dist.get_rank(), world_size, device)
    finally:
        gc.collect()  # DDP's cycles hold the group, whose threads must end before the interpreter does
        dist.destroy_process_group()


def launch(function: Callable[[Any], None], config: Any, hardware: HardwareConfig) -> None:
    """Run `function(config)` in so many processes of this machine; a single one, or torchrun's, runs in place."""
    processes = hardware.processes
    if processes == 0:
        pick_device(hardware)  # says so where there is no GPU
        processes = torch.cuda.device_count()
    if processes == 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        function(config)
        return
    pick_device(hardware, processes - 1)
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what went wrong is told below
    local = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id="adaptive-span",
        max_restarts=0,
    )
    try:
        elastic_launch(local, _work)(function, config)
    except SignalException as stop:
        raise SystemExit(128 + stop.sigval) from None
    except ChildFailedError as failures:
        raise _cause(failures.get_first_failure()[1]) from None


def _work(function: Callable[[Any], None], config: Any) -> None:
    """In a worker: leave what goes wrong where the parent looks for it, which then tells it once."""
    try:
        function(config)
    except Exception as error:
        get_error_handler().record_exception(error)
        raise SystemExit(2 if isinstance(error, UserError) else 1) from None


def _cause(failure: ProcessFailure) -> BaseException:
    """What the parent raises for the first worker that failed."""
    report = failure.error_file_data.get("message") if isinstance(failure.error_file_data, dict) else None
    if not isinstance(report, dict):
        if failure.exitcode > 128:  # it was told to stop, has saved and said so
            return SystemExit(failure.exitcode)
        return RuntimeError(f"the process of rank {failure.local_rank} died: {failure.message}")
    if failure.exitcode == 2:
        return UserError(report["message"].removeprefix("UserError: "))
    return RuntimeError(f"the process of rank {failure.local_rank} failed with\n{report['extraInfo']['py_callstack']}")
