"""Submit the runs of a command to SLURM, as one job or one array, and give the prompt back: Hydra's launcher."""

import io
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

from adaptive_span.checkpoint.paths import last_step
from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError
from adaptive_span.launch.local import compose, give_directories
from adaptive_span.launch.run_names import give_names
from adaptive_span.launch.slurm import cluster, options, resources, snapshot, status
from adaptive_span.reporting import sweep_table
from adaptive_span.reporting.run_directory import forget_failure, is_done, refuse_links, report_finished
from adaptive_span.terminal.printing import print_line

INSTEAD = {"timeout_min": "time", "mem_gb": "memory", "cpus_per_task": "cpus", "gpus_per_node": "gpus"}
OTHER_NAMES = {"timeout_min": "time", "mem_gb": "mem", "tasks_per_node": "ntasks_per_node", "name": "job_name"}


class JobLauncher(SlurmLauncher):  # type: ignore[misc]  # the plugin has no types
    """Submit as the submitit plugin does, but pickle a typed configuration, and wait only where that is asked for.

    A command that waits ends with 0 if all jobs have completed, else with 1.
    """

    __module__ = "hydra_plugins.adaptive_span_slurm"  # where Hydra looks for `_target_`

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Check and submit the runs that are not finished; watch them if asked to."""
        assert self.config is not None
        if self.config.hydra.job.config_name != "launch":
            raise UserError("hardware=slurm is for launch.py; evaluate on a machine of the cluster with hardware=node")
        for key, instead in INSTEAD.items():
            if self.params[key]:
                raise UserError(f"hydra.launcher.{key}={self.params[key]} is not read; give hardware.{instead}")
        cluster.forget_allocation()
        cluster.ask("sbatch", "--version")
        configs = compose(self.config, self.hydra_context, job_overrides)
        hardware = _common_hardware(configs)
        directory = self._give_directories(configs)
        give_names(configs, job_overrides, directory)
        left = _unfinished(configs, directory)
        if left:
            self._submit(left, hardware, directory)
        is_search = configs[0].search.trial is not None  # which goes on by what these runs come to
        runs = {str(config.run.dir) for config in configs}
        completed = status.watch(directory, runs) if left and (hardware.wait or is_search) else True
        if len(configs) > 1 and hardware.wait and not is_search:
            sweep_table.summarize([Path(str(config.run.dir)) for config in configs], directory)
        if not completed:
            raise SystemExit(1)
        return []

    def _submit(self, configs: list[Config], hardware: HardwareConfig, directory: Path) -> None:
        """Check all that can be known about these runs, then queue them."""
        sbatch = options.checked(hardware.sbatch)
        resolved = resources.resolve_resources(hardware, resources.nodes())
        resources.refuse_unknown_accounts(hardware)
        for config in configs:
            config.hardware = resolved
            config.validate()  # the batch, now that the number of processes is known
        if 60 * resolved.minutes <= self.params["signal_delay_s"]:
            raise UserError(
                f"hardware.time={resolved.time} leaves no time to train, as a job is warned "
                f"hydra.launcher.signal_delay_s={self.params['signal_delay_s']} seconds before its end; give more"
            )
        status.refuse_second(directory)
        with _nothing_left(directory):
            jobs = self._queue(configs, directory, sbatch)
        status.write(directory, jobs)
        status.announce(directory, jobs, resolved)

    def _give_directories(self, configs: list[Config]) -> Path:
        """Set absolute directories, which a job's script can name."""
        directory = Path(os.path.abspath(give_directories(configs, self.config)))
        if set(str(directory)) & {":", "%"}:
            raise UserError(
                f"run.dir={directory} holds a : or a %, which mean something in a job; give another run.dir"
            )
        for config in configs:
            config.run.dir = os.path.abspath(str(config.run.dir))
        return directory

    def _queue(self, configs: list[Config], directory: Path, sbatch: dict[str, Any]) -> list[status.SubmittedJob]:
        import submitit

        from adaptive_span.launch.slurm.job import TrainingJob

        hardware, folder = configs[0].hardware, directory / "slurm"
        try:
            refuse_links(directory)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"run.dir={directory} cannot be written to ({error.strerror}); give another run.dir"
            ) from None
        cluster.refuse_unseen(directory, hardware)
        code = snapshot.take(directory, sorted({name for config in configs for name in config.plugins}))
        settings: dict[str, Any] = {OTHER_NAMES.get(key, key): value for key, value in self.params.items()}
        del settings["submitit_folder"], settings["max_num_timeout"]
        settings |= {
            "job_name": directory.name,
            "ntasks_per_node": 1,  # an agent, which starts the processes
            "time": hardware.minutes,
            "mem": None if hardware.megabytes is None else f"{hardware.megabytes}M",
            "cpus_per_task": hardware.cpus,
            "gpus_per_node": None if hardware.gpus == "0" else hardware.gpus,
            "stderr_to_stdout": True,
            "setup": [*(settings["setup"] or []), *map(_or_fail, hardware.setup), *snapshot.setup(code)],
            "additional_parameters": {"requeue": True} | settings["additional_parameters"] | sbatch,
            "srun_args": [
                f"--cpus-per-task={hardware.cpus}",  # it does not take over those of the job by itself
                "--kill-on-bad-exit=1",  # nor end all nodes when one has failed
                f"--output={folder}/{'%A_%a' if len(configs) > 1 else '%j'}_0_log.out",  # one log for all nodes
            ],
        }
        executor = submitit.SlurmExecutor(folder, max_num_timeout=self.params["max_num_timeout"])
        executor.update_parameters(**{key: value for key, value in settings.items() if value is not None})
        for config in configs:
            forget_failure(Path(str(config.run.dir)))
        command, delay = self.task_function.command, self.params["signal_delay_s"]
        trainings = [TrainingJob(config, command, delay) for config in configs]

        def submit() -> Sequence[submitit.Job[None]]:
            try:
                with redirect_stderr(io.StringIO()):  # where sbatch's words would be shown twice
                    return executor.submit_array(trainings)
            except submitit.core.utils.FailedJobError as error:
                message, given = " ".join(str(error).split()), f"; see hardware.sbatch={sbatch}" if sbatch else ""
                if "timed out" in message:  # to try again might queue it twice
                    raise cluster.Unsure(
                        f"sbatch had no answer in time ({message}), and the job may be in the queue all the same; look "
                        f"with squeue --name={shlex.quote(settings['job_name'])} before giving the command again"
                    ) from None
                if any(sign in message for sign in cluster.AWAY):
                    raise cluster.Away(message) from None
                raise UserError(f"SLURM has refused the job: {message}{given}") from None

        submitted = cluster.patiently(submit)
        return [
            status.SubmittedJob(job.job_id, str(config.run.dir), str(folder), config.train.total_steps)
            for job, config in zip(submitted, configs, strict=True)
        ]


def _unfinished(configs: list[Config], directory: Path) -> list[Config]:
    """Return the runs that have something left to do; print which have not."""
    left = [config for config in configs if not is_done(config)]
    if len(configs) == 1 and not left:
        report_finished(directory, last_step(directory), configs[0])
    elif len(left) < len(configs):
        done = [Path(str(config.run.dir)).name for config in configs if config not in left]
        print_line(
            f"{len(done)} of {len(configs)} runs in {directory} are finished and not queued again: {', '.join(done)}"
        )
    return left


def _or_fail(line: str) -> str:
    """Return shell that runs a line of `hardware.setup`, and ends the job with a message if it fails."""
    message = shlex.quote(f"error: hardware.setup failed at: {' '.join(line.split())}")
    return f"{{ {line}\n}} || {{ echo {message}; exit 1; }}"


@contextmanager
def _nothing_left(directory: Path) -> Iterator[None]:
    """Remove what was made for a submission that failed, unless a run was there before."""
    made = [each for each in (directory, *directory.parents) if not each.exists()]
    try:
        yield
    except UserError as error:
        if made and not isinstance(error, cluster.Unsure):
            shutil.rmtree(directory, ignore_errors=True)
            for parent in made[1:]:
                with suppress(OSError):  # another submission is there
                    parent.rmdir()
        raise


def _common_hardware(configs: list[Config]) -> HardwareConfig:
    """Return what all jobs of an array ask for.

    Raises:
        UserError: They differ.
    """
    first = configs[0].hardware
    for config in configs:
        for key, value in vars(first).items():
            other = getattr(config.hardware, key)
            if other != value:
                raise UserError(
                    f"hardware.{key}={value},{other} cannot be swept: all jobs of a sweep ask SLURM for the same; "
                    f"give one command for each"
                )
    return replace(first)
