"""The processes of a run: which one this is, on which device, and what they exchange."""

import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.errors import ProcessLost, UserError
from adaptive_span.hardware import gpu, machine

STACKS = 1  # seconds that processes get to print where they are, before the first of them ends all


@dataclass(frozen=True)
class Process:
    """One of the processes that work on a run."""

    rank: int
    world_size: int
    device: torch.device
    patient: Any = None  # a group whose processes may wait for one another as long as it takes

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes, logs and shows progress."""
        return self.rank == 0

    def share(self, size: int) -> slice:
        """Return this process's part of `size` rows."""
        return slice(self.rank * size // self.world_size, (self.rank + 1) * size // self.world_size)

    def sum(self, numbers: list[float]) -> list[float]:
        """Return the numbers added up over the processes, in double precision, on the host."""
        if self.world_size == 1:
            return numbers
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def max(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        if self.world_size == 1:
            return number
        highest = torch.tensor(number)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        return int(highest)

    def gather_rows(self, tensor: Tensor) -> Tensor | None:
        """Return the (b, …) of every process as (B, …) on the host of the main process; None in the others."""
        tensor = tensor.cpu()
        if self.world_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)] if self.is_main else None
        dist.gather(tensor.contiguous(), parts)
        return torch.cat(parts) if parts else None

    def gather(self, thing: Any) -> list[Any]:
        """Return one thing per process, by rank, in the main process; an empty list in the others."""
        if self.world_size == 1:
            return [thing]
        things: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(thing, things)
        return things or []

    def barrier(self) -> None:
        """Wait for the other processes, for at most `hardware.timeout`."""
        self.max(0)

    def wait_for_all(self) -> None:
        """Wait after what may take one process much longer than another, whatever `hardware.timeout` says."""
        if self.world_size > 1:
            dist.barrier(self.patient)


def pick_device(hardware: HardwareConfig, local_rank: int = 0) -> torch.device:
    """Return the device of this machine's process number `local_rank`. Raises `UserError` if there is none like it."""
    wanted = hardware.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return torch.device("cpu")
    if wanted == "mps":
        return _apple_gpu(local_rank)
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


def _apple_gpu(local_rank: int) -> torch.device:
    if not torch.backends.mps.is_available():
        raise UserError(
            "hardware.device=mps, but torch sees no GPU of Apple's on this machine; take hardware=cpu or hardware=auto"
        )
    if local_rank:
        raise UserError(
            f"hardware.processes={local_rank + 1} or more, but hardware.device=mps is one GPU; take "
            f"hardware.processes=1"
        )
    return torch.device("mps")


def autocast(hardware: HardwareConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Multiply matrices in bf16 where `hardware.precision=bf16`. Parameters and updates stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16) if hardware.precision == "bf16" else nullcontext()


@contextmanager
def process_group(hardware: HardwareConfig) -> Iterator[Process]:
    """Join the processes that torchrun or `launch` described in the environment, or be the only one.

    Raises:
        UserError: The device that is asked for is not there.
        ProcessLost: Another process has not answered for `hardware.timeout`.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = pick_device(hardware, local_rank)
    if device.type == "cuda":
        gpu.use(device)
    if world_size == 1:
        yield Process(0, 1, device)
        return
    # Each process would start a thread a core: N processes would share each core among N threads.
    torch.set_num_threads(max(1, machine.cores() // int(os.environ["LOCAL_WORLD_SIZE"])))
    timeout = timedelta(minutes=hardware.timeout, seconds=STACKS)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    patient = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    try:
        yield Process(dist.get_rank(), world_size, device, patient)
    except RuntimeError as error:
        if "Timed out" not in str(error):
            raise
        raise ProcessLost(
            f"rank {dist.get_rank()} has waited for another one for hardware.timeout={hardware.timeout:g} minutes: it "
            f"hangs (each rank that can has printed where it is)"
        ) from error
    finally:
        gc.collect()  # DDP's cycles hold the group, whose threads must end before the interpreter does
        dist.destroy_process_group()


def available_memory(process: Process) -> int | None:
    """Return the bytes that this process may hope for, asked before the first step; None where nobody knows."""
    if process.device.type == "cuda":
        return torch.cuda.get_device_properties(process.device).total_memory
    return machine.memory(process.world_size)


def peak_memory(process: Process) -> int:
    """Return the most bytes that this process has held at once, on its GPU or in main memory."""
    if process.device.type == "cuda":
        return torch.cuda.max_memory_allocated(process.device)
    return machine.peak_memory()
