"""Whatever stops a run: it saves or says why not, leaves nothing half-made, and the same command resumes it."""

import os
import pty
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil
import pytest
import torch

from adaptive_span.checkpoint import files
from adaptive_span.config.schema import Config, TrackingConfig
from adaptive_span.errors import UserError
from adaptive_span.reporting import figures, run_directory, scores
from adaptive_span.reporting.figure_style import save_figure
from adaptive_span.reporting.tracking import Tracker
from tests.conftest import ENVIRONMENT, ROOT, SMALL, finish, metrics, sentence
from tests.integration.test_train import assert_same_run, newest

pytestmark = pytest.mark.timeout(600)  # each of several trainings, beside all that is tested at the same time
LONG = ["train.steps=600", "model.dropout=0.2", "checkpoint.every=50"]


UNTRACKED = Config(tracking=TrackingConfig("none"))


@pytest.fixture(scope="session")
def straight(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The undisturbed run of so many processes."""
    home = tmp_path_factory.mktemp("straight")

    @cache
    def run(processes: int) -> Path:
        settings = [f"data.path={text}", *SMALL, *LONG, f"hardware.processes={processes}", f"run.dir={processes}"]
        finish([sys.executable, str(ROOT / "launch.py"), "data=files", *settings], home)
        return home / str(processes)

    return run


class Terminal:
    """A command in a terminal of its own, whose keys can be pressed and which can be closed."""

    def __init__(self, words: list[str], directory: Path):
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests run under nohup
            os.chdir(directory)
            os.execvpe(words[0], words, ENVIRONMENT)

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def read(self) -> None:
        """Show what was printed, as a terminal must: a full one would stop the command."""
        try:
            os.read(self.master, 1 << 16)
        except OSError:  # the command has ended
            time.sleep(0.02)

    def read_until(self, happened: Callable[[], bool]) -> None:
        while not happened():
            self.read()

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def logged(run: Path) -> int:
    """The last step in a run's metrics."""
    return metrics(run)[-1]["step"] if (run / "metrics.jsonl").exists() and metrics(run) else 0


def left(directory: Path) -> list[Path]:
    """What is half-made."""
    return [path for ending in ("writing", "building", "part") for path in directory.rglob(f"*.{ending}")]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_closed_terminal_saves_and_the_same_command_resumes(processes, straight, launch, command, tmp_path):
    settings = [*LONG, f"hardware.processes={processes}", "tracking=offline"]
    terminal = Terminal(command(*settings, "run.dir=closed"), tmp_path)
    terminal.read_until(lambda: logged(tmp_path / "closed") >= 20)
    os.kill(terminal.pid, signal.SIGSTOP)  # or a fast run could be over before its terminal is closed
    os.close(terminal.master)
    os.kill(terminal.pid, signal.SIGCONT)
    assert terminal.exit_code() == 128 + signal.SIGHUP
    step = newest(tmp_path / "closed")["step"]
    assert 20 <= step < 600
    assert f"closed after step {step}" in launch(*settings, "run.dir=closed").stdout
    assert_same_run(straight(processes), tmp_path / "closed")


def test_a_hang_up_is_ignored_where_it_was_to_be_ignored(straight, command, tmp_path):
    words = ["nohup", *command(*LONG, "hardware.processes=2", "run.dir=run")]
    run = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, env=ENVIRONMENT, start_new_session=True)
    while logged(tmp_path / "run") < 20:
        assert run.poll() is None
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGHUP)
    run.communicate()
    assert run.returncode == 0
    assert_same_run(straight(2), tmp_path / "run")


def test_one_ctrl_c_saves(command, tmp_path):
    """A press reaches each process from the terminal, and workers from the process that started them too."""
    words = command("train.steps=100000", "log.every=1", "hardware.processes=2", "run.dir=run")
    terminal = Terminal(words, tmp_path)
    terminal.read_until(lambda: logged(tmp_path / "run") >= 20)
    terminal.press(b"\x03")
    assert terminal.exit_code() == 128 + signal.SIGINT
    assert newest(tmp_path / "run")["step"] == logged(tmp_path / "run")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_second_ctrl_c_ends_at_once(processes, command, text, tmp_path):
    """Within a validation that takes minutes, after which the first one would have saved."""
    shutil.copytree(text, tmp_path / "text")
    (tmp_path / "text" / "valid.txt").write_bytes((text / "train.txt").read_bytes() * 200)
    settings = [f"data.path={tmp_path / 'text'}", "validation.every=12", "validation.blocks=100000", "log.every=1"]
    terminal = Terminal(command(*settings, f"hardware.processes={processes}", "run.dir=run"), tmp_path)
    terminal.read_until(lambda: newest_step(tmp_path / "run") == 10 and logged(tmp_path / "run") == 11)
    for _ in range(2):
        time.sleep(1.5)
        terminal.press(b"\x03")
    assert terminal.exit_code() == 128 + signal.SIGINT
    assert newest_step(tmp_path / "run") == 10
    assert left(tmp_path) == []


def newest_step(run: Path) -> int:
    return max((int(path.stem[5:]) for path in (run / "checkpoints").glob("step_*.pt")), default=0)


SHUT = [(1, "2>&1 | head -1"), pytest.param(2, "2> errors | head -1", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("processes", "closed"), SHUT)
def test_a_run_whose_output_nobody_reads_comes_to_its_end(processes, closed, command, tmp_path):
    words = command("run.dir=run", f"hardware.processes={processes}", "log.every=1")
    result = finish(["bash", "-c", f"set -o pipefail; {shlex.join(words)} {closed}"], tmp_path)
    assert result.stdout.startswith("model       tiny: ")
    assert result.stdout.count("\n") == 1
    assert (tmp_path / "run" / "evaluation.json").exists()
    if processes == 2:
        assert (tmp_path / "errors").read_text() == (
            "warning: nobody reads the output any more; the training continues, and its numbers are in "
            "run/metrics.jsonl\n"
        )


def test_a_program_whose_output_nobody_reads_ends_as_if_it_had_been_read(launch, tmp_path):
    launch("run.dir=run", "train.steps=2")
    for program in (
        "-m adaptive_span sweep .",
        f"{ROOT}/evaluate.py run=run hardware=cpu",
        f"{ROOT}/launch.py --cfg all",
    ):
        words = f"{sys.executable} {program}"
        result = finish(["bash", "-c", f"set -o pipefail; {words} | (exec <&-; sleep 1)"], tmp_path)
        assert result.stderr == ""


DIVERGING = """
import runpy, sys
from adaptive_span.training.state import TrainState
update = TrainState.update
def diverging(training):
    if training.step == 14:
        training.model.positions.data.fill_(float("nan"))
    update(training)
TrainState.update = diverging
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_nothing_that_is_not_finite_is_saved(command, tmp_path):
    words = command("run.dir=run", "log.every=1", program=(sys.executable, "-c", DIVERGING))
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
    assert sentence(result).startswith("the training has diverged: the loss is nan at step 15, ")
    assert logged(tmp_path / "run") == 14
    found = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in found] == ["best.pt", "step_00000010.pt"]
    for path in found:
        weights = torch.load(path, weights_only=True)["model"]
        assert all(tensor.isfinite().all() for tensor in weights.values())


def worker(launched: subprocess.Popen, rank: int) -> psutil.Process:
    """The process of this rank; they are started in order."""
    children = sorted(psutil.Process(launched.pid).children(), key=psutil.Process.create_time)
    return [child for child in children if "multiprocessing.spawn" in " ".join(child.cmdline())][rank]


def test_a_rank_that_is_killed_is_told_and_the_run_resumes_by_command_or_by_itself(straight, command, tmp_path):
    words = command(*LONG, "hardware.processes=2", "run.dir=run")

    def killed(number: int, after: int, *more: str) -> subprocess.CompletedProcess[str]:
        run = subprocess.Popen(
            [*words, *more], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        while newest_step(tmp_path / "run") < after:
            assert run.poll() is None
            time.sleep(0.02)
        worker(run, number).kill()
        return subprocess.CompletedProcess(words, run.wait(120), *run.communicate())

    lost = killed(1, 50)
    assert lost.returncode == 128 + signal.SIGKILL
    step = newest_step(tmp_path / "run")
    assert lost.stderr == (
        "error: the process of rank 1 was ended by signal 9 (SIGKILL, often the kernel's when memory runs out); "
        f"step {step} is saved, and the same command resumes it\n"
    )
    restarted = killed(0, step + 50, "hardware.max_restarts=1")
    assert restarted.returncode == 0
    assert restarted.stderr.startswith("warning: the process of rank 0 was ended by signal 9 (SIGKILL, ")
    assert restarted.stdout.count("resuming run after step") == 2
    assert_same_run(straight(2), tmp_path / "run")


def test_a_mistake_is_not_made_again_by_restarting(launch, tmp_path):
    settings = ["run.dir=run", "hardware.processes=2", "hardware.max_restarts=3", "model.block_size=700"]
    assert "shorter than a block of 700" in sentence(launch(*settings, ok=False))


def test_a_rank_that_hangs_ends_all_with_the_stacks_of_those_that_can_print_one(command, tmp_path):
    words = command("train.steps=100000", "hardware.processes=2", "run.dir=run", "hardware.timeout=0.2")
    run = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while newest_step(tmp_path / "run") < 10:
        assert run.poll() is None
        time.sleep(0.02)
    stopped = worker(run, 1)
    stopped.suspend()
    told = run.communicate()[1]
    assert run.returncode == 1
    assert told.startswith("rank 0 has made no step for 12 seconds:\n")
    assert ", in fit\n" in told
    assert told.splitlines()[-1].startswith("error: rank 0 has waited for another one for hardware.timeout=0.2 minutes")
    assert " is saved, and the same command resumes it\n" in told
    assert not stopped.is_running()


def limit_files(run: subprocess.Popen) -> Callable[[], object]:
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    return lambda: None


def forbid_writing(run: subprocess.Popen) -> Callable[[], object]:
    checkpoints = Path(os.readlink(f"/proc/{run.pid}/cwd")) / "run" / "checkpoints"
    checkpoints.chmod(0o555)
    return lambda: checkpoints.chmod(0o755)


def remove(run: subprocess.Popen) -> Callable[[], object]:
    shutil.rmtree(Path(os.readlink(f"/proc/{run.pid}/cwd")) / "run")
    return lambda: None


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (limit_files, "File too large): raise the limit of a file's size"),
        (forbid_writing, "Permission denied): allow writing there"),
        (remove, "No such file or directory): the folder was removed"),
    ],
)
def test_a_disk_that_takes_no_more_is_told_and_the_same_command_resumes(damage, told, straight, command, tmp_path):
    words = command(*LONG, "run.dir=run")
    if os.getuid() == 0:  # for whom permissions mean something only without this capability
        words = ["setpriv", "--bounding-set", "-dac_override", *words]
    # What measures the tests' coverage could not write its own file there.
    unmeasured = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("COVERAGE")}
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=unmeasured) as run:
        while newest_step(tmp_path / "run") < 50:
            assert run.poll() is None
            time.sleep(0.02)
        mend = damage(run)
        problem = run.communicate()[1]
    mend()
    assert told in sentence(subprocess.CompletedProcess(words, run.returncode, "", problem))
    assert left(tmp_path) == []
    assert (newest_step(tmp_path / "run") >= 50) == (damage is not remove)
    finish(words, tmp_path)
    assert_same_run(straight(1), tmp_path / "run")


FULL = """
mkdir disk && mount -t tmpfs -o size={size} none disk
"$@" run.dir=disk/run 2> problem
echo $? > code
find disk -name '*.writing' > half
mount -o remount,size=100m disk && "$@" run.dir=disk/run && cp -r disk/run run
"""


@pytest.mark.parametrize("size", ["16k", pytest.param("280k", marks=pytest.mark.slow)])
def test_a_full_disk_is_told_and_the_same_command_resumes_once_there_is_space(size, straight, command, tmp_path):
    """Wherever it was full: at the first numbers, or at a later checkpoint."""
    finish(["unshare", "--mount", "bash", "-c", FULL.format(size=size), "bash", *command(*LONG)], tmp_path)
    problem = subprocess.CompletedProcess(
        "", int((tmp_path / "code").read_text()), "", (tmp_path / "problem").read_text()
    )
    assert "cannot be written (No space left on device): free some space there" in sentence(problem)
    assert (tmp_path / "half").read_text() == ""
    assert_same_run(straight(1), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "write"),
    {
        "best.pt": lambda path: files.save({"model": torch.zeros(9999)}, path),
        "config.yaml": lambda path: run_directory.write_config(Config(), path.parent),
        "metrics.jsonl": lambda path: Tracker(path.parent, UNTRACKED, 0, None).log(1, {"long " * 20: 0.1}, []),
        "spans.png": lambda path: save_figure(figures.heat_map([[1.0]], 9, 1, ""), path),
        "evaluation.json": lambda path: scores.write({"spans": [[1.0] * 99]}, path.parent),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_every_writer_names_what_it_cannot_write_and_leaves_what_was_there(name, write, tmp_path):
    (tmp_path / name).write_text("{}")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
            write(tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left(tmp_path) == []
    if name != "metrics.jsonl":  # whose last line may be cut
        assert (tmp_path / name).read_text() == "{}"
