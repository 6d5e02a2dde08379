"""The one place that knows ranks: starting processes, and what they tell each other."""

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from adaptive_span import capacity, gpu, machine
from adaptive_span.config import HardwareConfig
from adaptive_span.errors import ProcessLost, UserError
from adaptive_span.output import outlived

STACKS = 1  # seconds that processes get to print where they are, before the first of them ends all
GRACE = 5  # seconds in which one that has lost its peers leaves it to the peer that failed to say why, and is ended


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
    """Matrix products in bfloat16 where `hardware.precision=bf16`; parameters and updates stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16) if hardware.precision == "bf16" else nullcontext()


@contextmanager
def process_group(hardware: HardwareConfig) -> Iterator[Process]:
    """This process among its peers, as torchrun or `launch` described it in the environment; or alone."""
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


@dataclass(frozen=True)
class Node:
    """One of the machines that work on a run."""

    rank: int = 0
    count: int = 1
    endpoint: str = "127.0.0.1:0"  # where the nodes meet: an address of the first one, with a port that is free there
    run_id: str = "adaptive-span"  # another one at each attempt, so that no worker meets those of the last

    def launch_config(self, processes: int, logs: str) -> LaunchConfig:
        """Return torch's description of it; `logs` is a folder for what workers report."""
        alone = self.count == 1
        return LaunchConfig(
            min_nodes=self.count,
            max_nodes=self.count,
            nproc_per_node=processes,
            rdzv_backend="c10d" if alone else "static",  # c10d would number the nodes as they come
            rdzv_configs={} if alone else {"rank": self.rank},
            rdzv_endpoint=self.endpoint,
            run_id=self.run_id,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            signals_to_handle=",".join(s.name for s in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, *hang_up())),
        )


def hang_up() -> tuple[signal.Signals, ...]:
    """Return SIGHUP, which a terminal sends when it is closed; or nothing where it is ignored, as `nohup` asks."""
    return () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)


def launch(function: Callable[[Any], None], config: Any, hardware: HardwareConfig) -> None:
    """Run `function(config)` in so many processes of this machine; a single one, or torchrun's, runs in place."""
    if hardware.nodes > 1:
        raise UserError(
            f"hardware.nodes={hardware.nodes} is for a cluster; take hardware=slurm_multinode hardware.nodes="
            f"{hardware.nodes}, or hardware.nodes=1"
        )
    processes = processes_of(hardware)
    if processes == 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        function(config)
    else:
        start(function, config, processes, Node())


def processes_of(hardware: HardwareConfig) -> int:
    """On this machine; says so where it has not so many GPUs."""
    capacity.check_processes(hardware)
    pick_device(hardware, max(0, hardware.processes - 1))
    return hardware.processes or max(1, torch.cuda.device_count())


def start(function: Callable[[Any], None], config: Any, processes: int, node: Node) -> None:
    """Run `function(config)` in so many processes of their own on each node. Called once on each node.

    What a process failed of is raised. Before that all are started again up to `hardware.max_restarts` times, unless a
    user's mistake is the reason, which would be made again.
    """
    for left in reversed(range(config.hardware.max_restarts + 1)):
        try:
            return _start_once(function, config, processes, node)
        except (ProcessLost, RuntimeError) as failure:
            if not left:
                raise
            print(f"warning: {failure}; all processes are started again ({left - 1} more restarts)", file=sys.stderr)


def _start_once(function: Callable[[Any], None], config: Any, processes: int, node: Node) -> None:
    agent = "torch.distributed.elastic"
    for name in (agent, f"{agent}.agent.server.api", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what went wrong is told below
    _shield_resource_tracker()
    # Seconds to save in, as schedulers kill after 30. torch up to 2.11 does not read it and waits 30.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "20")
    try:
        with TemporaryDirectory() as logs:
            elastic_launch(node.launch_config(processes, logs), _work)(function, config)
    except SignalException as stop:
        raise SystemExit(128 + stop.sigval) from None
    except ChildFailedError as failures:
        raise _cause(*failures.get_first_failure()) from None


def _shield_resource_tracker() -> None:
    """Start multiprocessing's tracker with SIGHUP blocked: a closed terminal would end it, and it would be missed."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _work(function: Callable[[Any], None], config: Any) -> None:
    """Run in a worker. Leave what goes wrong where the parent looks for it, which then reports it once."""
    try:
        with outlived():
            function(config)
    except Exception as error:
        if isinstance(error, dist.DistError) or "remote worker" in str(error):  # of nccl; of gloo, a RuntimeError
            time.sleep(GRACE)
        get_error_handler().record_exception(error)
        raise SystemExit(error.exit_code if isinstance(error, UserError) else 1) from None


def _cause(rank: int, failure: ProcessFailure) -> BaseException:
    """Return what the parent raises for the first worker that failed.

    The exit code of a run that has lost a process to a signal is 128 + the signal, as if it had itself been killed.
    """
    report = failure.error_file_data.get("message") if isinstance(failure.error_file_data, dict) else None
    if not isinstance(report, dict):
        if failure.exitcode > 128:  # it was told to stop, has saved and said so
            return SystemExit(failure.exitcode)
        if failure.exitcode < 0:
            number = -failure.exitcode
            often = ", often the kernel's when memory runs out" if number == signal.SIGKILL else ""
            return ProcessLost(
                f"the process of rank {rank} was ended by signal {number} ({failure.signal_name()}{often})",
                128 + number,
            )
        return RuntimeError(f"the process of rank {rank} died: {failure.message}")
    kind, _, sentence = report["message"].partition(": ")
    if kind == ProcessLost.__name__:
        return ProcessLost(sentence)
    if failure.exitcode == UserError.exit_code:
        return UserError(sentence)
    return RuntimeError(f"the process of rank {rank} failed with\n{report['extraInfo']['py_callstack']}")
