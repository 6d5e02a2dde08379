"""Start the processes of a run on this machine, and pass on how they ended."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.distributed import pick_device
from adaptive_span.errors import ProcessLost, UserError
from adaptive_span.hardware import capacity
from adaptive_span.terminal.output import outlived
from adaptive_span.terminal.program import hang_up

T = TypeVar("T")
GRACE = 5  # seconds for which a process that lost its peers waits, so that the one that failed reports why


@dataclass(frozen=True)
class Rendezvous:
    """Where the machines of a run meet, and which of them this is."""

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


def launch(hardware: HardwareConfig, function: Callable[..., T], *arguments: Any) -> T:
    """Run `function(*arguments)` in `hardware.processes` processes of this machine; one, or torchrun's, in place.

    Returns:
        What the first of the processes returned.
    """
    if hardware.nodes > 1:
        raise UserError(
            f"hardware.nodes={hardware.nodes} is for a cluster; take hardware=slurm_multinode hardware.nodes="
            f"{hardware.nodes}, or hardware.nodes=1"
        )
    processes = processes_of(hardware)
    if processes == 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        return function(*arguments)
    return start(hardware, processes, Rendezvous(), function, *arguments)


def processes_of(hardware: HardwareConfig) -> int:
    """Return the number of processes on this machine. Raises `UserError` where it has fewer GPUs."""
    capacity.check_processes(hardware)
    pick_device(hardware, max(0, hardware.processes - 1))
    return hardware.processes or max(1, torch.cuda.device_count())


def start(
    hardware: HardwareConfig, processes: int, rendezvous: Rendezvous, function: Callable[..., T], *arguments: Any
) -> T:
    """Run `function(*arguments)` in so many processes of their own on each node. Call it once on each node.

    What a process failed of is raised. Before that all are started again up to `hardware.max_restarts` times, unless a
    user's mistake is the reason, which would be made again.

    Returns:
        What the first of the processes on this node returned.
    """
    for left in reversed(range(hardware.max_restarts + 1)):
        try:
            return _start_once(processes, rendezvous, function, *arguments)
        except (ProcessLost, RuntimeError) as failure:
            if not left:
                raise
            print(f"warning: {failure}; all processes are started again ({left - 1} more restarts)", file=sys.stderr)
    raise AssertionError("the last failure was raised")


def _start_once(processes: int, rendezvous: Rendezvous, function: Callable[..., T], *arguments: Any) -> T:
    agent = "torch.distributed.elastic"
    for name in (agent, f"{agent}.agent.server.api", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what went wrong is raised below
    # Seconds to save in, as schedulers kill after 30. torch up to 2.11 does not read it and waits 30.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "20")
    _shield_resource_tracker()
    try:
        with TemporaryDirectory() as logs:
            run_workers = elastic_launch(rendezvous.launch_config(processes, logs), _work)
            results: dict[int, T] = run_workers(function, *arguments)
    except SignalException as stop:
        raise SystemExit(128 + stop.sigval) from None
    except ChildFailedError as failures:
        raise _cause(*failures.get_first_failure()) from None
    return results[min(results)]  # by rank


def _shield_resource_tracker() -> None:
    """Start multiprocessing's tracker with SIGHUP blocked: a closed terminal would end it, and it would be missed."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _work(function: Callable[..., T], *arguments: Any) -> T:
    """Run in a worker. Leave what goes wrong where the parent looks for it, which then reports it once."""
    try:
        with outlived():
            return function(*arguments)
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
        if failure.exitcode > 128:  # it was asked to stop, and has saved and reported that
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
