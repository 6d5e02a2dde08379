"""Trainings on a real SLURM of two nodes, which are interrupted in every way that it knows, and lose no step."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from adaptive_span.errors import UserError
from adaptive_span.launch.slurm import resources
from adaptive_span.launch.slurm.cluster import ask, members
from tests.conftest import ENVIRONMENT, ROOT, metrics, sentence
from tests.integration.test_plugins import MODULE, OWN
from tests.integration.test_sweep import TWO_JOBS, table
from tests.integration.test_train import assert_same_run, losses, newest, of_type, wandb_records
from tests.slurm.conftest import HARDWARE, Cluster, job_of
from tests.unit.config.test_config import composed

pytestmark = pytest.mark.xdist_group("slurm")  # one cluster, however many processes test
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


def states(slurm: Cluster, job: str) -> list[str]:
    """In which each attempt has ended."""
    return sorted(slurm.ask("sacct", "-X", "-n", "-P", "-D", "-j", job, "-o", "State").split("\n"))


def test_requeue_and_preemption_neither_lose_nor_repeat_a_step(stories, slurm, launch, tmp_path):
    launch(*LONG, "run.dir=straight")
    job = stories["preempted"].result()
    run = slurm.directory / "preempted"
    assert_same_run(tmp_path / "straight", run)
    assert states(slurm, job) == ["COMPLETED", "PREEMPTED", "REQUEUED"]
    text = (run / "slurm" / f"{job}_0_log.out").read_text()
    stops = [int(step) for step in re.findall(r"stopped after step (\d+) of 300, and saved", text)]
    assert stops == [int(step) for step in re.findall(r"resuming \S+ after step (\d+)", text)]
    assert len(stops) == 2
    assert re.search(r"\nstep 150/300 .* train bpc \d", text)  # a line each, and no bar
    assert "\x1b" not in text
    assert_one_wandb_run(run, 3)


def assert_one_wandb_run(run: Path, parts: int) -> None:
    """All that has been logged, each step once and in order, whatever has ended the parts of a run."""
    found = wandb_records(run)
    assert len(found) == parts
    assert len({of_type(part, "run")[0]["run_id"] for part in found}) == 1
    steps = [line["item"]["step"] for part in found for line in of_type(part, "history")]
    assert steps == [line["step"] for line in metrics(run)]


def two_nodes(slurm: Cluster) -> str:
    """Told by SIGUSR2 that it will be preempted, as some sites do."""
    settings = [
        "hardware=slurm_multinode",
        "hardware.processes=2",
        "train.steps=100",
        "log.every=1",
        "tracking=offline",
    ]
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
    assert stopped == re.findall(r"resuming \S+ after step (\d+)", text)
    assert len(stopped) == 1
    assert states(slurm, job) == ["COMPLETED", "REQUEUED"]
    assert_one_wandb_run(run, 2)
    assert slurm.ask("sacct", "-X", "-n", "-P", "-j", job, "-o", "NNodes") == "2"


def time_limit(slurm: Cluster) -> str:
    settings = ["hardware.time=1:00", "hydra.launcher.signal_delay_s=20", "hardware.requeues=1", "train.steps=100000"]
    job = job_of(slurm.launch("run.dir=limit", *settings))
    slurm.until_ended("limit", job, "FAILED")
    return job


def test_a_time_limit_requeues_so_often_as_it_may_and_the_same_command_goes_on(stories, slurm):
    job = stories["time_limit"].result()
    run = slurm.directory / "limit"
    text = (run / "slurm" / f"{job}_0_log.out").read_text()
    first, second = [int(step) for step in re.findall(r"stopped after step (\d+) of 100000, and saved", text)]
    assert re.findall(r"resuming \S+ after step (\d+)", text) == [str(first)]
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
    for name in ("adaptive_span", "conf", "sweeps"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    for name in ("launch.py", "evaluate.py"):
        shutil.copy(ROOT / name, tree)
    hold = "hardware.sbatch.hold=true"
    cancelled = job_of(slurm.launch(*LONG, "run.dir=edited", hold, tree=tree))
    trainer = tree / "adaptive_span" / "training" / "trainer.py"
    sound = trainer.read_text()
    trainer.write_text(sound.replace("state.update()", "state.update() if process.is_main else broken()"))
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
    tree = trainer.parent.parent.parent

    words = [*LONG, "run.dir=edited", "hardware.wait=true"]
    crashed = slurm.launch(*words, "hardware=slurm_multinode", tree=tree, ok=False)  # on the second node
    assert crashed.returncode == 1
    assert slurm.account(job_of(crashed)) == "FAILED"
    log = (run / "slurm" / f"{job_of(crashed)}_0_log.out").read_text()
    for told in (crashed.stdout, log):
        assert "NameError: name 'broken' is not defined" in told
        assert f'File "{run}/code/adaptive_span/training/trainer.py"' in told

    trainer.write_text(sound)
    assert "300/300" in slurm.launch(*words, tree=tree).stdout
    launch(*LONG, "run.dir=straight")
    assert_same_run(tmp_path / "straight", run)


SWEEPS = [pytest.param(name, marks=[] if name == "seeds" else pytest.mark.slow) for name in TWO_JOBS]


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_is_an_array_whose_jobs_each_have_a_directory(name, slurm):
    values = [f"{key}={value}" for key, value in TWO_JOBS[name].items()]
    home = f"sweep-{name}"
    launched = slurm.launch(f"sweep={name}", *values, "train.steps=6", "hardware.wait=true", f"run.dir={home}")
    job = job_of(launched)
    runs = [slurm.directory / home / number for number in "01"]
    for told in (launched.stdout, slurm.ask(sys.executable, "-m", "adaptive_span", "status", home)):
        for number, run in enumerate(runs):
            assert re.search(rf"{job}_{number} +COMPLETED +6/6 +{metrics(run)[-1]['train/bpc']:.3f} +{run}", told)
    assert metrics(runs[0]) != metrics(runs[1])
    called = [yaml.safe_load((run / "config.yaml").read_text())["run"] for run in runs]
    assert len({each["name"] for each in called}) == 2
    assert {each["group"] for each in called} == {home}
    assert [row["step"] for row in table(slurm.directory / home)] == ["6", "6"]
    assert slurm.ask("sacct", "-X", "-n", "-P", "-j", job, "-o", "JobID").split() == [f"{job}_0", f"{job}_1"]


def test_a_sweep_again_queues_what_is_not_finished_and_a_failed_run_says_why(slurm):
    swept = ["hydra.mode=MULTIRUN", "optimizer.lr=0.07,1e30", "optimizer.clip=1e30", "run.dir=again", "train.steps=6"]
    launched = slurm.launch(*swept, "hardware.wait=true", ok=False)
    assert launched.returncode == 1
    rows = {row["optimizer.lr"]: row for row in table(slurm.directory / "again")}
    why = rows["1e+30"]["reason"]
    assert re.match("the training has diverged: the loss is .* at step 2", why)
    assert not rows["0.07"]["reason"]
    assert f"\n1 failed: {why}\n" in launched.stdout
    status = [sys.executable, "-m", "adaptive_span", "status", "again"]
    assert f"job {job_of(launched)}_1 FAILED: {why}" in slurm.ask(*status)

    again = slurm.launch(*swept, "hardware.sbatch.hold=true")
    assert "1 of 2 runs in " in again.stdout
    assert " are finished and not queued again: 0" in again.stdout
    told = slurm.ask(*status)
    assert re.search(rf"{job_of(launched)}_0 +COMPLETED.*\n{job_of(again)} +PENDING", told)
    assert "diverged" not in told  # it is tried again
    slurm.run("scancel", job_of(again))

    assert "is finished after 6 steps" in slurm.launch("run.dir=again/0", *swept[2:3], "train.steps=6").stdout
    told = sentence(slurm.launch("run.dir=again/0", "train.seed=7", ok=False))
    assert "was begun with another configuration: optimizer.clip (1e+30 → 0.03), train.seed (1 → 7)" in told
    assert not (slurm.directory / "again" / "0" / "slurm").exists()  # nothing was queued


def test_a_search_queues_an_array_per_round_and_takes_up_jobs_that_ended_without_it(slurm):
    conf = slurm.directory / "conf" / "sweep"
    conf.mkdir(parents=True)
    (conf / "rates.yaml").write_text("ranges: {optimizer.lr: {low: 0.001, high: 1, log: true}}", encoding="utf-8")
    home = slurm.directory / "search"
    words = ["sweep=rates", "search=optuna", "run.dir=search", "hardware.parallel_jobs=2", "search.prune_after=2"]
    submitted = home / "slurm" / "jobs.json"
    with subprocess.Popen(slurm.words(*words, "search.trials=4"), cwd=slurm.directory, env=slurm.environment) as killed:
        slurm.until(submitted.exists)
        killed.kill()
    told = sentence(slurm.launch(*words, "search.trials=4", ok=False))
    assert re.match(r"run\.dir=.*/search/0 has job \d+_0 in the queue already", told)
    for job in json.loads(submitted.read_text()):
        slurm.until_ended("search", job["id"], "COMPLETED")
    searched = slurm.launch(*words, "search.trials=4")
    assert "trial 1 (2 of 4)" not in searched.stdout  # its job has ended, and is told
    assert "trial 3 (4 of 4)" in searched.stdout
    jobs = [job["id"].split("_") for job in json.loads(submitted.read_text())]
    assert [number for _, number in jobs] == ["0", "1", "0", "1"]
    assert jobs[0][0] == jobs[1][0] != jobs[2][0] == jobs[3][0]
    found = json.loads((home / "search.json").read_text())
    states = {trial["trial"]: trial["state"] for trial in found["trials"]}
    assert [states[0], states[1]] == ["complete", "complete"]
    assert set(states.values()) == {"complete", "pruned"}
    assert {int(Path(row["run"]).name): row["reason"] for row in table(home)} == {
        number: "pruned after step 12 of 24" if state == "pruned" else "" for number, state in states.items()
    }


def script_of(slurm: Cluster, run: str) -> str:
    (path,) = (slurm.directory / run / "slurm").glob("*_submission.sh")
    return path.read_text()


def test_a_job_asks_for_all_gpus_of_a_node_and_their_share_of_its_cores(slurm):
    """On nodes of 2 GPUs and 32 cores; the jobs are held, for there is nothing behind the GPUs."""
    hold = "hardware.sbatch.hold=true"
    defaults = ["hardware.cpus=null", "hardware.processes=0", "hardware.device=cuda", hold]
    asked = {
        "all": ("hardware=slurm_multinode", "gpus-per-node=2 cpus-per-task=32 nodes=2 time=1440"),
        "half": (
            "hardware.gpus=1 hardware.memory=4 hardware.time=90",
            "gpus-per-node=1 cpus-per-task=16 mem=4096M time=90",
        ),
        "typed": (
            "hardware.gpus=gpu:a100:1 hardware.memory=1.5G hardware.time=1-12 hardware.qos=normal "
            "hardware.account=root hardware.sbatch.exclude=n2 hardware.sbatch.mail-user=me@example.org",
            "gpus-per-node=a100:1 mem=1536M time=2160 qos=normal account=root exclude=n2 mail-user=me@example.org",
        ),
        "array": ("hardware.gpus=1 train.seed=1,2,3 hardware.parallel_jobs=2", "array=0-2%2 cpus-per-task=16"),
    }
    for run, (settings, lines) in asked.items():
        launched = slurm.launch(f"run.dir={run}", *settings.split(), *defaults)
        assert set(lines.split()) < set(re.findall(r"#SBATCH --(\S+)", script_of(slurm, run)))
        assert slurm.ask("squeue", "-h", "-j", job_of(launched), "-o", "%T %r") == "PENDING JobHeldUser"
        refused = slurm.launch(f"run.dir={run}", *settings.split(), *defaults, ok=False)
        assert f"has job {job_of(launched)}" in sentence(refused)
        assert "in the queue already (PENDING)" in sentence(refused)
        slurm.run("scancel", job_of(launched))
    never_begun = f"{job_of(launched)}_[0-2%2]"
    slurm.until(lambda: slurm.ask("sacct", "-X", "-n", "-P", "-j", job_of(launched), "-o", "JobID") == never_begun)
    assert members(never_begun) == [f"{job_of(launched)}_{n}" for n in range(3)]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("partition=mian", "hardware.partition=mian must be one of main, spare, urgent; did you mean 'main'?"),
        ("gpus=3", "hardware.gpus=3 is more than a node of partition main has: 2"),
        ("gpus=h100:1", "hardware.gpus=h100:1: no node of partition main has GPUs of type h100; take a100 or v100"),
        ("gpus=a100:1 nodes=2", "hardware.gpus=a100:1 is more than each of 2 nodes of partition main has: 0"),
        ("memory=63G", "hardware.memory=63G is more than a node of partition main has: 64000M"),
        ("qos=nromal", "hardware.qos=nromal must be one of normal; did you mean 'normal'?"),
        ("account=rot", "hardware.account=rot must be one of root; did you mean 'root'?"),
        ("nodes=3", "hardware.nodes=3 is more than partition main has: 2"),
        ("cpus=33", "hardware.cpus=33 is more than a node of partition main has: 32"),
        ("time=5000", "hardware.time=5000 is longer than partition main allows: 2880 minutes"),
        ("time=2-00:01:00", "hardware.time=2-00:01:00 is longer than partition main allows: 2880 minutes"),
        ("constraint=a100", "hardware.constraint=a100 is no feature of a node of partition main"),
        (
            "device=cuda gpus=1 processes=2",
            "hardware.processes=2 are more than the hardware.gpus=1 that each node gives them",
        ),
    ],
)
def test_what_the_cluster_cannot_give_is_told(settings, told, slurm, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    hardware = composed(*HARDWARE, *(f"hardware.{word}" for word in settings.split()), "train.batch_size=12").hardware
    with pytest.raises(UserError, match=f"^{re.escape(told)}"):
        resources.refuse_unknown_accounts(resources.resolve_resources(hardware, resources.nodes()))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["hardware.partition=mian"], "hardware.partition=mian must be one of main, spare, urgent"),
        (
            ["hardware.nodes=2", "hardware.processes=3"],
            "train.batch_size=8 must be divisible by processes × slices = 6",
        ),
        (["hardware.time=2:00"], "hardware.time=2:00 leaves no time to train"),
        (["hydra.sweeper.max_batch_size=1"], "hydra.sweeper.max_batch_size would cut a sweep into several"),
        (["hydra.launcher.timeout_min=5"], "hydra.launcher.timeout_min=5 is not read; give hardware.time"),
        (["-m", "hardware.time=1,2"], "hardware.time=1,2 cannot be swept"),
        (["hydra.launcher.gres=fpga:1"], "SLURM has refused the job: "),
        (["hardware.sbatch.time=5"], "hardware.sbatch={time: 5} is an option that the job has already: hardware.time"),
        (["hardware.sbatch.foo=1"], "SLURM has refused the job: sbatch: unrecognized option '--foo=1'"),
    ],
)
def test_what_is_refused_is_not_queued_and_leaves_nothing(settings, told, slurm):
    refused = slurm.launch("run.dir=refused/run", *settings, ok=False)
    assert sentence(refused).startswith(told)
    assert not (slurm.directory / "refused").exists()
    assert "run" not in slurm.ask("squeue", "-h", "-o", "%j").split()


def test_lines_of_shell_come_before_python_and_one_that_fails_is_the_reason(slurm):
    lines = 'hardware.setup=["export PYTHONPROFILEIMPORTTIME=1", "echo loaded"]'  # Python says then what it imports
    slurm.launch("run.dir=setup", lines, "train.steps=6", "hardware.wait=true")
    (log,) = (slurm.directory / "setup" / "slurm").glob("*.out")
    assert re.match("loaded\nimport time: ", log.read_text())

    failed = slurm.launch("run.dir=no-setup", "hardware.setup=[ls nowhere]", "hardware.wait=true", ok=False)
    told = slurm.ask(sys.executable, "-m", "adaptive_span", "status", "no-setup")
    assert f"job {job_of(failed)} FAILED: error: hardware.setup failed at: ls nowhere" in told
    assert "error: hardware.setup failed at: ls nowhere" in failed.stdout


def test_a_controller_that_is_away_is_waited_for(stories, slurm, monkeypatch):
    for story in stories.values():  # which could not do without it
        story.result()
    hold = "hardware.sbatch.hold=true"
    status = [sys.executable, "-m", "adaptive_span", "status", "watched"]
    commands = {
        "watched": slurm.words("run.dir=watched", "train.steps=6", "hardware.wait=true", hold),
        "queued": slurm.words("run.dir=queued", "train.steps=6", hold),
        "status": status,
    }
    logs = {name: slurm.directory / f"{name}.log" for name in commands}

    def start(name: str) -> subprocess.Popen[bytes]:
        with open(logs[name], "wb") as log:
            return subprocess.Popen(
                commands[name], cwd=slurm.directory, env=slurm.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def says(name: str, text: str) -> None:
        slurm.until(lambda: text in logs[name].read_text(), lambda: logs[name].read_text())

    running = {"watched": start("watched")}
    says("watched", "stop    scancel")
    with slurm.away():
        running |= {name: start(name) for name in ("queued", "status")}
        says("watched", "waiting for SLURM's controller, which does not answer; the jobs keep running")
        for name in ("queued", "status"):
            says(name, "waiting up to 60 seconds for SLURM's controller, which does not answer")
        for key, value in slurm.environment.items():
            monkeypatch.setenv(key, value)
        with pytest.raises(
            UserError, match=r"^SLURM's controller does not answer .*connect failure.*; `scontrol ping`"
        ):
            ask("squeue", patience=0)  # as it ends after a minute
    assert running["status"].wait(120) == running["queued"].wait(120) == 0, logs["queued"].read_text()
    assert " PENDING " in logs["status"].read_text()
    jobs = [re.search(r"scancel (\d+)", logs[name].read_text())[1] for name in ("watched", "queued")]
    slurm.run("scancel", jobs[1])
    slurm.run("scontrol", "release", jobs[0])
    assert running["watched"].wait(120) == 0, logs["watched"].read_text()
    assert re.search(r"COMPLETED +6/6", logs["watched"].read_text())


def test_a_run_directory_that_the_nodes_cannot_see(slurm, tmp_path):
    """A file system that only the submitting process has mounted."""
    mount = 'mount -t tmpfs none "$0" && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", mount, str(tmp_path), *slurm.words(f"run.dir={tmp_path}/run")]
    told = sentence(slurm.run(*words, ok=False))
    assert told.startswith(
        f"the nodes cannot see run.dir={tmp_path}/run: it lies on a disk (tmpfs) of this machine alone"
    )
    assert "run" not in slurm.ask("squeue", "-h", "-o", "%j").split()


def test_without_slurm_one_is_told_where_it_is(command, tmp_path):
    environment = ENVIRONMENT | {"PATH": str(tmp_path)}
    words = command("hardware=slurm")
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert sentence(result).startswith("there is no sbatch on the path: hardware=slurm needs the commands of a SLURM")
    assert list(tmp_path.iterdir()) == []


def test_a_module_of_plugins_reaches_the_nodes_as_it_was_submitted(slurm, launch, tmp_path):
    for directory in (slurm.directory, tmp_path):
        (directory / "my_module.py").write_text(MODULE)
    job = job_of(slurm.launch(*OWN, "run.dir=plugin", "hardware.sbatch.hold=true", "hardware.processes=2"))
    (slurm.directory / "my_module.py").write_text("broken")
    slurm.run("scontrol", "release", job)
    slurm.until_ended("plugin", job, "COMPLETED")
    launch(*OWN, "run.dir=straight", "hardware.processes=2")
    assert_same_run(tmp_path / "straight", slurm.directory / "plugin")
