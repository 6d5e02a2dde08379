"""Ask SLURM how jobs are doing, and whether its nodes see a directory."""

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.errors import UserError
from adaptive_span.terminal.printing import print_line

ENDED = "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()

LOCAL = (
    "btrfs ext2/ext3 f2fs overlayfs ramfs tmpfs xfs zfs".split()
)  # kinds of file systems that are often one machine's


PATIENCE = 60.0  # seconds for which a controller may be away
AWAY = ("Unable to contact slurm controller", "Connection refused", "Socket timed out", "standby mode")

T = TypeVar("T")


class Unsure(UserError):
    """A job may be in the queue, or may not be."""


class Away(UserError):
    """SLURM's controller does not answer."""

    def __init__(self, message: str):
        super().__init__(
            f"SLURM's controller does not answer ({message}); `scontrol ping` says when it is up again, then "
            f"repeat this"
        )


def patiently(call: Callable[[], T], patience: float = PATIENCE) -> T:
    """Return what `call` returns. While the controller is away, print so once and call again."""
    end, is_first = time.monotonic() + patience, True
    while True:
        try:
            return call()
        except Away:
            if time.monotonic() >= end:
                raise
        if is_first:
            print_line(f"waiting up to {patience:.0f} seconds for SLURM's controller, which does not answer")
        is_first = False
        time.sleep(1)


def ask(*command: str, patience: float = PATIENCE) -> str:
    """Return the output of one of SLURM's commands.

    Args:
        command: Word by word.
        patience: Seconds for which the controller may be away.

    Raises:
        UserError: There is no such command, or it failed.
    """
    if shutil.which(command[0]) is None:
        raise UserError(
            f"there is no {command[0]} on the path: hardware=slurm needs the commands of a SLURM cluster; log in to "
            f"one of its machines, or take hardware=auto"
        )
    return patiently(lambda: _answer(command), patience)


def _answer(command: tuple[str, ...]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == 0:
        return result.stdout
    error = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
    if any(sign in error for sign in AWAY):
        raise Away(error)
    raise UserError(f"{command[0]} failed: {error}")


def forget_allocation() -> None:
    """Remove the variables of a job in which the command may have been typed: new jobs would inherit them.

    The one that would make submitit listen to another signal than the agent passes on goes too.
    """
    of_a_job = [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]
    for name in (*of_a_job, "SUBMITIT_PREEMPT_SIGNAL"):
        os.environ.pop(name, None)


def refuse_unseen(directory: Path, hardware: HardwareConfig) -> None:
    """Refuse a directory that the nodes cannot see: a job could not even write its log.

    Only a node knows. One is asked where the directory lies on a disk of this machine, and a node is free at once.

    Raises:
        UserError: They cannot see it.
    """
    kind = _filesystem(directory)
    if kind not in LOCAL:
        return
    command = "srun --immediate=10 --quiet --nodes=1 --ntasks=1 --time=1 --chdir=/ --job-name=look".split()
    for key in ("partition", "account", "qos", "constraint"):
        if getattr(hardware, key):
            command.append(f"--{key}={getattr(hardware, key)}")
    with tempfile.NamedTemporaryFile(dir=directory) as marker:  # not just a directory of the same name
        look = f"if test -e {shlex.quote(marker.name)}; then echo seen; else echo unseen; fi"
        answer = subprocess.run(  # srun would read what is meant for the shell that runs this
            [*command, "sh", "-c", look], stdin=subprocess.DEVNULL, capture_output=True, text=True
        ).stdout.strip()
    if answer == "unseen":
        raise UserError(
            f"the nodes cannot see run.dir={directory}: it lies on a disk ({kind}) of this machine alone; give a "
            f"run.dir on a file system that the cluster shares"
        )
    if answer != "seen":
        print_line(
            f"warning: run.dir={directory} lies on a disk ({kind}) of this machine, and no node was free to look for it"
        )


def _filesystem(directory: Path) -> str:
    """Return the type of the file system that holds a directory, like ext4 or nfs4."""
    command = ["stat", "--file-system", "--format=%T", str(directory)]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def states(ids: Iterable[str], patience: float = PATIENCE) -> dict[str, str]:
    """Return the state of each job, like PENDING or COMPLETED; jobs that SLURM has forgotten are left out.

    The queue knows what is in it and, for some minutes, what was. sacct knows the rest, where a cluster keeps accounts.
    """
    ids = list(ids)
    arrays = f"--jobs={','.join(sorted({name.split('_')[0] for name in ids}))}"
    known: dict[str, str] = {}
    try:
        queue = ask("squeue", "--noheader", "--array", "--states=all", arrays, "--format=%i|%T", patience=patience)
        known |= dict(line.split("|") for line in queue.splitlines())
    except UserError as error:
        if "Invalid job id" not in str(error):
            raise
    if not known.keys() >= set(ids) and shutil.which("sacct"):
        command = ["sacct", "--allocations", "--noheader", "--parsable2", arrays, "--format=JobID,State"]
        result = subprocess.run(command, capture_output=True, text=True)  # fails where no accounts are kept
        lines = [line.split("|") for line in result.stdout.splitlines()]
        known = {each: state.split()[0] for name, state in lines for each in members(name)} | known
    return {name: known[name] for name in ids if name in known}


def members(name: str) -> list[str]:
    """Return the jobs of an array that `squeue` or `sacct` writes in one line.

    7_[0-2,5%3] → 7_0, 7_1, 7_2, 7_5: those that ended before they started.
    """
    array, _, rest = name.partition("_[")
    if not rest:
        return [name]
    ranges = [part.partition("-") for part in rest.rstrip("]").partition("%")[0].split(",")]
    return [f"{array}_{n}" for first, _, last in ranges for n in range(int(first), int(last or first) + 1)]
