"""What a job runs on each of its nodes: an agent that starts the workers there and passes on SLURM's signals.

SIGUSR2 (the time limit is near, or the site's way to preempt) goes to the workers, which save at the same step and
report it. Only then does submitit's own handler queue the job again. SIGTERM (cancelled, requeued by hand or by
preemption) also saves, and ends with 143. Nothing that was stopped ends with 0, which SLURM would take for COMPLETED.
"""

import multiprocessing
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import submitit

from adaptive_span.config import plugins
from adaptive_span.config.registry import TRACKERS
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError
from adaptive_span.hardware import machine
from adaptive_span.launch.slurm import cluster
from adaptive_span.reporting.run_directory import failure_kept, resumable

Handler = Callable[[int, FrameType | None], Any]


@dataclass
class TrainingJob:
    """One training, pickled for the nodes by reference, so that they import it from the snapshot."""

    config: Config
    command: list[str]  # that submitted it, word by word
    signal_delay: float  # seconds between SIGUSR2 and the end of the job

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return what submitit queues again; it calls this before it does."""
        return submitit.helpers.DelayedSubmission(self)

    def __call__(self) -> None:
        signal.signal(signal.SIGTERM, _stop)  # submitit's own would ignore it while torch is imported
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # submitit's own would log, perhaps amid another line
        os.environ["TTY_COMPATIBLE"] = "0"  # srun's terminal is none: what is written to it ends in the log
        environment = submitit.JobEnvironment()
        is_main = environment.node == 0
        with ExitStack() as stack:
            stack.enter_context(failure_kept(self.config, among_others=True))
            stack.enter_context(resumable(Path(self.config.run.dir or "")))
            plugins.load(self.config.plugins)
            if is_main:
                stack.enter_context(TRACKERS[self.config.tracking.name].beside_job())
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            agent = Agent(directory / "saved", self.signal_delay, is_main)
            agent.listen()
            try:
                self._train(environment.num_nodes, environment.node, environment.hostnames[0])
            except SystemExit:
                if agent.refusal:
                    raise agent.refusal from None
                raise

    def _train(self, nodes: int, rank: int, first: str) -> None:
        from adaptive_span.launch import processes  # torch

        hardware = self.config.hardware
        count, cores = processes.processes_of(hardware), int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        os.environ[machine.CORES] = str(cores)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
        job_id, attempt = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", "0")
        rendezvous = processes.Rendezvous(run_id=f"{job_id}-{attempt}")
        if nodes > 1:
            endpoint = f"{_address(first)}:{12000 + int(job_id) % 8000}"
            rendezvous = processes.Rendezvous(rank, nodes, endpoint, rendezvous.run_id)
        processes.start(hardware, count, rendezvous, _work, self.config, self.command)


def _work(config: Config, command: list[str]) -> None:
    """Train in each worker, which imports all that a training needs; the agent need not."""
    from adaptive_span.evaluation.result import print_result
    from adaptive_span.launch.search.judge import judge_of
    from adaptive_span.training import trainer

    result = trainer.train(config, command, judge_of(config))
    if result:
        print_result(result, config)


class Agent:
    """Stands between SLURM, which signals this process and, depending on the site, its children, and the workers."""

    def __init__(self, saved: Path, signal_delay: float, is_main: bool):
        from adaptive_span.training.interruption import SAVED

        self.saved, self.signal_delay, self.is_main = saved, signal_delay, is_main
        self.refusal: UserError | None = None  # why the job has not been queued again
        self.requeue: Handler = signal.getsignal(signal.SIGUSR2)  # type: ignore[assignment]  # submitit's
        os.environ[SAVED] = str(saved)

    def listen(self) -> None:
        """Handle SIGUSR2 here, and hand it to every child as blocked.

        This thread blocks it, and children start with the mask of the thread that starts them. Another thread lets it
        in; Python runs the handler in this one all the same.
        """
        signal.signal(signal.SIGUSR2, self._pass_on)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        threading.Thread(target=_let_in, args=(signal.SIGUSR2,), daemon=True).start()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        signalled_at = time.monotonic()
        workers = multiprocessing.active_children()
        for worker in workers:
            if worker.pid:
                os.kill(worker.pid, number)
        if self.is_main:  # the one whose worker writes
            until = signalled_at + 0.8 * self.signal_delay
            while not self.saved.exists() and time.monotonic() < until and any(w.is_alive() for w in workers):
                time.sleep(0.05)
        try:
            self._requeue(number, frame, signalled_at + 0.9 * self.signal_delay)
        except submitit.core.utils.UncompletedJobError as refusal:
            self.refusal = UserError(
                f"the job has reached its time limit once more than it may ({refusal}); what it has trained is saved, "
                f"and the same command resumes it; hardware.requeues says how often a job may"
            )
        except subprocess.SubprocessError as error:
            self.refusal = UserError(
                f"the job cannot be queued again, as SLURM's controller does not answer ({error}); what it has trained "
                f"is saved, and the same command resumes it"
            )
        else:
            return
        for worker in workers:  # to raise it here could interrupt anything; the workers' end is waited for
            worker.terminate()

    def _requeue(self, number: int, frame: FrameType | None, until: float) -> None:
        """Have the job queued again; ask a controller that is away until time is up."""
        while True:
            try:
                self.requeue(number, frame)
                return
            except subprocess.SubprocessError:
                if time.monotonic() > until:
                    raise
            time.sleep(1)


def _let_in(number: int) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    threading.Event().wait()


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _address(node: str) -> str:
    """Return the address of a node, whose name alone need not be known to the others."""
    description = cluster.ask("scontrol", "-o", "show", "node", node)
    return next(field.removeprefix("NodeAddr=") for field in description.split() if field.startswith("NodeAddr="))
