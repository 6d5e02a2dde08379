"""Hydra's launcher for SLURM: the jobs of one command become one job, or one array, and the prompt comes back."""

import hashlib
import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import open_dict

from adaptive_span import command_line, sweep
from adaptive_span.config import Config, HardwareConfig
from adaptive_span.errors import UserError
from adaptive_span.identity import default_run_dir
from adaptive_span.slurm import cluster, snapshot, status

OTHER_NAMES = {"timeout_min": "time", "mem_gb": "mem", "tasks_per_node": "ntasks_per_node", "name": "job_name"}


class Launcher(SlurmLauncher):
    """As the plugin's, but it pickles a typed configuration and not Hydra, and waits only where it is asked to."""

    __module__ = "hydra_plugins.adaptive_span"  # where Hydra looks for `_target_`

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert self.config is not None
        Path(self.config.hydra.sweep.dir, "multirun.yaml").unlink(missing_ok=True)  # Hydra's sweeper has left it
        if self.config.hydra.job.name != "launch":
            raise UserError("hardware=slurm is for launch.py; evaluate on a machine of the cluster with hardware=node")
        if self.config.hydra.sweeper.max_batch_size is not None:
            raise UserError(
                "hydra.sweeper.max_batch_size would cut a sweep into several arrays; leave it out: "
                "hardware.parallel_jobs says how many of its jobs may run at a time"
            )
        cluster.forget_allocation()
        cluster.ask("sbatch", "--version")
        configs = [self._config(overrides) for overrides in job_overrides]
        hardware = _one(configs)
        fitted = cluster.fitted(hardware, cluster.nodes())
        for config in configs:
            config.hardware = fitted
            config.validate()  # the batch, now that the number of processes is known
        if 60 * fitted.time <= self.params["signal_delay_s"]:
            raise UserError(
                f"hardware.time={fitted.time} leaves nothing to train in, as a job is told "
                f"hydra.launcher.signal_delay_s={self.params['signal_delay_s']} seconds before its end; give more"
            )
        home = _give_directories(configs)
        status.refuse_second(home)
        jobs = self._submit(configs, home)
        status.write(home, jobs)
        status.announce(home, jobs, fitted)
        if hardware.wait:
            completed = status.watch(home)
            if len(configs) > 1:
                sweep.summarize([Path(str(config.run.dir)) for config in configs], home)
            if not completed:
                raise SystemExit(1)
        return []

    def _config(self, overrides: Sequence[str]) -> Config:
        """Of one job, checked as launch.py checks that of a training here."""
        assert self.hydra_context is not None
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(composed):
            del composed["hydra"]
        config = command_line.typed(composed, Config)
        config.validate()
        return config

    def _submit(self, configs: list[Config], home: Path) -> list[status.Job]:
        import submitit

        from adaptive_span.slurm.job import Job

        hardware, folder = configs[0].hardware, home / "slurm"
        _make_seen(home, folder, hardware)
        code = snapshot.take(home)
        settings: dict[str, Any] = {OTHER_NAMES.get(key, key): value for key, value in self.params.items()}
        del settings["submitit_folder"], settings["max_num_timeout"]
        settings |= {
            "job_name": home.name,
            "ntasks_per_node": 1,  # an agent, which starts the processes
            "mem": f"{hardware.memory}GB" if hardware.memory else None,
            "cpus_per_task": hardware.cpus,
            "gpus_per_node": hardware.gpus or None,
            "stderr_to_stdout": True,
            "setup": [*(settings["setup"] or []), *snapshot.setup(code)],
            "additional_parameters": {"requeue": True} | settings["additional_parameters"],
            "srun_args": [
                f"--cpus-per-task={hardware.cpus}",  # it does not take over those of the job by itself
                "--kill-on-bad-exit=1",  # nor end all nodes when one has failed
                f"--output={folder}/{'%A_%a' if len(configs) > 1 else '%j'}_0_log.out",  # one log for all nodes
            ],
        }
        executor = submitit.SlurmExecutor(folder, max_num_timeout=self.params["max_num_timeout"])
        executor.update_parameters(**{key: value for key, value in settings.items() if value is not None})
        trainings = [Job(config, sys.argv, self.params["signal_delay_s"]) for config in configs]
        try:
            with redirect_stderr(io.StringIO()):  # where sbatch's words would be shown twice
                submitted = executor.submit_array(trainings)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"SLURM has refused the job: {' '.join(str(error).split())}") from None
        return [
            status.Job(job.job_id, str(config.run.dir), str(folder), config.train.total_steps, hardware.nodes)
            for job, config in zip(submitted, configs, strict=True)
        ]


def _make_seen(home: Path, folder: Path, hardware: HardwareConfig) -> None:
    """Make the folder of scripts and logs, or raise where it can't be made, or not be seen from the nodes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        cluster.refuse_unseen(home, hardware)
    except OSError as error:
        raise UserError(f"run.dir={home} cannot be written to ({error.strerror}); give another run.dir") from None
    except UserError:
        for made in (folder, home):
            with suppress(OSError):  # it holds something
                made.rmdir()
        raise


def _one(configs: list[Config]) -> HardwareConfig:
    """What all jobs of an array ask for."""
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


def _give_directories(configs: list[Config]) -> Path:
    """Fixed here, once, for all attempts of a job: one job has `run.dir`, each of several its number below it."""
    asked = {config.run.dir for config in configs}
    if len(asked) > 1:
        raise UserError("run.dir cannot be swept: each job of a sweep has a directory of its own below it")
    names = [default_run_dir(config) for config in configs]
    if len(configs) == 1:
        home = Path(configs[0].run.dir or names[0])
    else:
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
        home = Path(configs[0].run.dir or f"runs/sweep-{digest}")
    home = Path(os.path.abspath(home))
    if set(str(home)) & {":", "%"}:
        raise UserError(f"run.dir={home} holds a : or a %, which mean something else in a job; give another run.dir")
    for number, config in enumerate(configs):
        config.run.dir = str(home if len(configs) == 1 else home / str(number))
    return home
