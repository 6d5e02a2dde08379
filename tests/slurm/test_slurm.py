"""Trainings on a real SLURM of two nodes, which are interrupted in every way that it knows, and lose no step."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.conftest import Cluster, job_of
from tests.test_train import assert_same_run, losses, metrics, newest, of_type, wandb_records

Story = dict[str, object]
LONG = ["train.steps=300", "model.dropout=0.2"]  # long enough to be interrupted, and any repeated step would show


@pytest.fixture(scope="session")
def stories(slurm: Cluster):
    """What happens to several jobs, told side by side: most of it is waiting."""
    with ThreadPoolExecutor(4) as pool:
        yield {
            tell.__name__: pool.submit(tell, slurm)
            for tell in (two_nodes, time_limit, preempted, edited_cancelled_crashed)
        }


def preempted(slurm: Cluster) -> str:
    """Requeued by hand, then by a partition that goes first."""
    spare = ["hardware.partition=spare", "hardware.cpus=24"]  # of the 32 that each node claims to have
    job = job_of(slurm.launch(*LONG, "run.dir=preempted", "tracking=offline", *spare))
    slurm.until_step("preempted", 50)
    slurm.run("scontrol", "requeue", job)
    slurm.until_step("preempted", 150)
    slurm.run("sbatch", "-p", "urgent", "-N2", "-c24", "-o", "/dev/null", "--wrap", "sleep 2")
    slurm.until_ended("preempted", job, "COMPLETED")
    return job


def test_requeue_and_preemption_neither_lose_nor_repeat_a_step(stories, slurm, launch, tmp_path):
    launch(*LONG, "run.dir=straight")
    job = stories["preempted"].result()
    run = slurm.directory / "preempted"
    assert_same_run(tmp_path / "straight", run)
    states = slurm.ask("sacct", "-X", "-n", "-P", "-D", "-j", job, "-o", "State").split("\n")
    assert sorted(states) == ["COMPLETED", "PREEMPTED", "REQUEUED"]
    text = (run / "slurm" / f"{job}_0_log.out").read_text()
    stops = [int(step) for step in re.findall(r"stopped after step (\d+) of 300, and saved", text)]
    assert stops == [int(step) for step in re.findall(r"going on with \S+ after step (\d+)", text)]
    assert len(stops) == 2
    parts = wandb_records(run)
    assert len(parts) == 3
    assert len({of_type(part, "run")[0]["run_id"] for part in parts}) == 1
    steps = [line["item"]["step"] for part in parts for line in of_type(part, "history")]
    assert steps == sorted(set(steps)) == [line["step"] for line in metrics(run)]


def two_nodes(slurm: Cluster) -> str:
    """Told by SIGUSR2 that it will be preempted, as some sites do."""
    settings = ["hardware=slurm_multinode", "hardware.processes=2", "train.steps=100", "log.every=1"]
    job = job_of(slurm.launch("run.dir=nodes", *settings))
    slurm.until_step("nodes", 20)
    slurm.run("scancel", "--signal=USR2", job)
    slurm.until_ended("nodes", job, "COMPLETED")
    return job


def test_two_nodes_train_as_one_process_and_save_at_the_same_step(stories, slurm, launch, tmp_path):
    launch("train.steps=100", "log.every=1", "run.dir=one")
    job = stories["two_nodes"].result()
    run = slurm.directory / "nodes"
    assert losses(run)[:10] == pytest.approx(losses(tmp_path / "one")[:10], abs=1e-4)
    assert [line["step"] for line in metrics(run)] == list(range(1, 101))
    assert losses(run) == pytest.approx(losses(tmp_path / "one"), abs=1e-3)  # rounding grows with the steps
    text = (run / "slurm" / f"{job}_0_log.out").read_text()
    stopped = re.findall(r"stopped after step (\d+) of 100, and saved", text)
    assert stopped == re.findall(r"going on with \S+ after step (\d+)", text)
    assert len(stopped) == 1
    assert "Requeued job" in text
    assert slurm.ask("sacct", "-X", "-n", "-P", "-j", job, "-o", "NNodes") == "2"


def time_limit(slurm: Cluster) -> str:
    settings = ["hardware.time=1", "hydra.launcher.signal_delay_s=20", "hardware.requeues=1", "train.steps=100000"]
    job = job_of(slurm.launch("run.dir=limit", *settings))
    slurm.until_ended("limit", job, "FAILED")
    return job


def test_a_time_limit_requeues_so_often_as_it_may_and_the_same_command_goes_on(stories, slurm):
    job = stories["time_limit"].result()
    run = slurm.directory / "limit"
    text = (run / "slurm" / f"{job}_0_log.out").read_text()
    first, second = [int(step) for step in re.findall(r"stopped after step (\d+) of 100000, and saved", text)]
    assert re.findall(r"going on with \S+ after step (\d+)", text) == [str(first)]
    assert newest(run)["step"] == second
    assert "the job has reached its time limit once more than it may" in text
    assert "hardware.requeues" in text
    out = slurm.launch("run.dir=limit", "hardware.wait=true", f"train.steps={second + 5}").stdout
    assert f"{second + 5}/{second + 5}" in out
    steps = [line["step"] for line in metrics(run)]
    assert steps == sorted(set(steps))


def edited_cancelled_crashed(slurm: Cluster) -> tuple[str, str, Path]:
    """One run, submitted from a copy of the tree that is broken while the job waits."""
    tree = slurm.directory / "tree"
    tree.mkdir()
    for name in ("adaptive_span", "conf"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    shutil.copy(ROOT / "launch.py", tree)
    hold = "+hydra.launcher.additional_parameters.hold=true"
    cancelled = job_of(slurm.launch(*LONG, "run.dir=edited", hold, tree=tree))
    trainer = tree / "adaptive_span" / "trainer.py"
    sound = trainer.read_text()
    trainer.write_text(sound.replace("training.update()", "raise ArithmeticError('broken on purpose')"))
    slurm.run("scontrol", "release", cancelled)
    slurm.until_step("edited", 50)
    slurm.run("scancel", cancelled)
    slurm.until_ended("edited", cancelled, "CANCELLED")
    return cancelled, sound, trainer


def test_a_job_runs_the_code_that_was_submitted_and_one_that_was_cancelled_or_has_crashed_goes_on(
    stories, slurm, launch, tmp_path
):
    cancelled, sound, trainer = stories["edited_cancelled_crashed"].result()
    run = slurm.directory / "edited"
    text = (run / "slurm" / f"{cancelled}_0_log.out").read_text()
    assert len(re.findall(r"stopped after step \d+ of 300, and saved", text)) == 1
    tree = trainer.parent.parent

    crashed = slurm.launch(*LONG, "run.dir=edited", "hardware.wait=true", tree=tree, ok=False)
    assert crashed.returncode == 1
    assert slurm.account(job_of(crashed)) == "FAILED"
    log = (run / "slurm" / f"{job_of(crashed)}_0_log.out").read_text()
    for told in (crashed.stdout, log):
        assert "ArithmeticError: broken on purpose" in told
        assert f'File "{run}/code/adaptive_span/trainer.py"' in told

    trainer.write_text(sound)
    assert "300/300" in slurm.launch(*LONG, "run.dir=edited", "hardware.wait=true", tree=tree).stdout
    launch(*LONG, "run.dir=straight")
    assert_same_run(tmp_path / "straight", run)
