"""What SLURM is asked: which nodes there are, and how jobs are doing."""

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from adaptive_span.config import HardwareConfig
from adaptive_span.console import say
from adaptive_span.errors import UserError, did_you_mean

ENDED = "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split()

LOCAL = (
    "btrfs ext2/ext3 f2fs overlayfs ramfs tmpfs xfs zfs".split()
)  # kinds of file systems that are often one machine's


@dataclass(frozen=True)
class Node:
    name: str
    partition: str
    is_default: bool  # its partition is the one that jobs go to which name none
    cpus: int
    gpus: int
    features: frozenset[str]
    minutes: float  # the longest that a job may take in that partition


def ask(*words: str) -> str:
    """The answer of one of SLURM's commands."""
    if shutil.which(words[0]) is None:
        raise UserError(
            f"there is no {words[0]} on the path: hardware=slurm needs the commands of a SLURM cluster; log in to one "
            f"of its machines, or take hardware=auto"
        )
    told = subprocess.run(words, capture_output=True, text=True)
    if told.returncode:
        raise UserError(f"{words[0]} failed: {' '.join(told.stderr.split()) or f'exit code {told.returncode}'}")
    return told.stdout


def nodes() -> list[Node]:
    """Every node, once for each partition that it is in."""
    found = []
    for line in ask("sinfo", "--noheader", "--Node", "--format=%N|%P|%c|%G|%f|%l").splitlines():
        name, partition, cpus, gres, features, limit = line.split("|")
        gpus = sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres))
        known = frozenset(features.split(","))
        found.append(
            Node(name, partition.rstrip("*"), partition.endswith("*"), int(cpus), gpus, known, _minutes(limit))
        )
    return found


def _minutes(limit: str) -> float:
    """Of `infinite`, `30:00` or `1-00:00:00`."""
    if not limit[0].isdigit():
        return float("inf")
    days, _, clock = limit.rpartition("-")
    hours, minutes, _ = ([0, 0, 0] + [int(part) for part in clock.split(":")])[-3:]
    return int(days or 0) * 1440 + hours * 60 + minutes


def fitted(hardware: HardwareConfig, nodes: Iterable[Node]) -> HardwareConfig:
    """With the GPUs and cores filled in that were left to the cluster; raises where it can't give what is asked for."""
    nodes = list(nodes)
    names = sorted({node.partition for node in nodes})
    wanted = hardware.partition
    if wanted is None:
        nodes = [node for node in nodes if node.is_default]
        if not nodes:
            raise UserError(
                f"this cluster has no default partition; give hardware.partition, one of {', '.join(names)}"
            )
    else:
        nodes = [node for node in nodes if node.partition in wanted.split(",")]
        unknown = [name for name in wanted.split(",") if name not in names]
        if unknown:
            raise UserError(
                f"hardware.partition={wanted} must be one of {', '.join(names)}{did_you_mean(wanted, names)}"
            )
    where = f"partition {wanted or nodes[0].partition}"
    longest = max(node.minutes for node in nodes)
    if hardware.time > longest:
        raise UserError(f"hardware.time={hardware.time} is longer than {where} allows: {longest:.0f} minutes")
    if hardware.constraint and re.fullmatch(r"[\w.-]+", hardware.constraint):  # not an expression
        known = sorted(frozenset.union(*(node.features for node in nodes)) - {"(null)"})
        nodes = [node for node in nodes if hardware.constraint in node.features]
        if not nodes:
            advice = f"it must be one of {', '.join(known)}" if known else "they have none: leave it out"
            raise UserError(f"hardware.constraint={hardware.constraint} is no feature of a node of {where}; {advice}")
    if hardware.nodes > len(nodes):
        raise UserError(f"hardware.nodes={hardware.nodes} is more than {where} has: {len(nodes)}")
    gpus = _amount("gpus", hardware.gpus, [node.gpus for node in nodes], hardware, where)
    if hardware.device == "cpu" and hardware.gpus is None:
        gpus = 0
    if gpus == 0 and (hardware.device == "cuda" or hardware.processes == 0):
        raise UserError(
            f"hardware.device={hardware.device} hardware.processes={hardware.processes} needs GPUs, but the nodes of "
            f"{where} have none; take another hardware.partition, or hardware.device=cpu hardware.processes=N"
        )
    if hardware.device == "cuda" and hardware.processes > gpus:
        raise UserError(
            f"hardware.processes={hardware.processes} are more than the hardware.gpus={gpus} that each node gives "
            f"them; take hardware.processes={gpus} or fewer"
        )
    nodes = [node for node in nodes if node.gpus >= gpus]
    share = [max(1, node.cpus * gpus // node.gpus) if gpus else node.cpus for node in nodes]
    cpus = hardware.cpus
    if cpus is None:
        cpus = sorted(share)[-hardware.nodes]
    else:
        _amount("cpus", cpus, [node.cpus for node in nodes], hardware, where)
    return replace(hardware, gpus=gpus, cpus=cpus)


def _amount(key: str, wanted: int | None, have: list[int], hardware: HardwareConfig, where: str) -> int:
    """So many of something on each node: what is asked for, or the most that enough nodes have."""
    most = sorted(have)[-hardware.nodes]
    if wanted is not None and wanted > most:
        each = "a node" if hardware.nodes == 1 else f"each of {hardware.nodes} nodes"
        raise UserError(f"hardware.{key}={wanted} is more than {each} of {where} has: {most}")
    return most if wanted is None else wanted


def forget_allocation() -> None:
    """The variables of a job in which the command may have been typed, which would describe the new ones wrongly; and
    the one that would make submitit listen to another signal than the agent passes on."""
    of_a_job = [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]
    for name in (*of_a_job, "SUBMITIT_PREEMPT_SIGNAL"):
        os.environ.pop(name, None)


def refuse_unseen(directory: Path, hardware: HardwareConfig) -> None:
    """Raise where the nodes cannot see DIRECTORY: a job could not even write its log.

    Only a node knows. One is asked where the directory lies on a disk of this machine, and a node is free at once.
    """
    kind = _filesystem(directory)
    if kind not in LOCAL:
        return
    words = ["srun", "--immediate=10", "--quiet", "--nodes=1", "--ntasks=1", "--time=1", "--chdir=/", "--job-name=look"]
    for key in ("partition", "account", "constraint"):
        if getattr(hardware, key):
            words.append(f"--{key}={getattr(hardware, key)}")
    with tempfile.NamedTemporaryFile(dir=directory) as marker:  # not just a directory of the same name
        look = f"if test -e {shlex.quote(marker.name)}; then echo seen; else echo unseen; fi"
        told = subprocess.run(  # srun would read what is meant for the shell that runs this
            [*words, "sh", "-c", look], stdin=subprocess.DEVNULL, capture_output=True, text=True
        ).stdout.strip()
    if told == "unseen":
        raise UserError(
            f"the nodes cannot see run.dir={directory}: it lies on a disk ({kind}) of this machine alone; give a "
            f"run.dir on a file system that the cluster shares"
        )
    if told != "seen":
        say(
            f"warning: run.dir={directory} lies on a disk ({kind}) of this machine, and no node was free to look for it"
        )


def _filesystem(directory: Path) -> str:
    """The type of the one that holds a directory, like ext4 or nfs4."""
    words = ["stat", "--file-system", "--format=%T", str(directory)]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def states(ids: Iterable[str]) -> dict[str, str]:
    """The state of each job, like PENDING or COMPLETED; nothing of those that SLURM has forgotten.

    The queue knows what is in it and, for some minutes, what was; sacct knows the rest, where a cluster keeps accounts.
    """
    ids = list(ids)
    arrays = f"--jobs={','.join(sorted({name.split('_')[0] for name in ids}))}"
    found: dict[str, str] = {}
    try:
        queue = ask("squeue", "--noheader", "--array", "--states=all", arrays, "--format=%i|%T")
        found |= dict(line.split("|") for line in queue.splitlines())
    except UserError as error:
        if "Invalid job id" not in str(error):
            raise
    if not found.keys() >= set(ids) and shutil.which("sacct"):
        words = ["sacct", "--allocations", "--noheader", "--parsable2", arrays, "--format=JobID,State"]
        told = subprocess.run(words, capture_output=True, text=True)  # fails where no accounts are kept
        lines = [line.split("|") for line in told.stdout.splitlines()]
        found = {each: state.split()[0] for name, state in lines for each in members(name)} | found
    return {name: found[name] for name in ids if name in found}


def members(name: str) -> list[str]:
    """7_[0-2,5%3] → 7_0, 7_1, 7_2, 7_5: the jobs of an array that have ended before they began are in one line."""
    array, _, rest = name.partition("_[")
    if not rest:
        return [name]
    ranges = [part.partition("-") for part in rest.rstrip("]").partition("%")[0].split(",")]
    return [f"{array}_{n}" for first, _, last in ranges for n in range(int(first), int(last or first) + 1)]
