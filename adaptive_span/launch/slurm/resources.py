"""Check what a job asks the cluster for against what the cluster has, before anything is queued."""

import getpass
import math
import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.config.quantities import Gpus, minutes
from adaptive_span.errors import UserError, did_you_mean
from adaptive_span.launch.slurm import cluster


@dataclass(frozen=True)
class ClusterNode:
    """One machine of the cluster, in one of its partitions."""

    name: str
    partition: str
    is_default: bool  # its partition is the one that jobs go to which name none
    cpus: int
    megabytes: int
    gpus: tuple[Gpus, ...]  # of each type that it has
    features: frozenset[str]
    minutes: float  # the longest that a job may take in that partition

    def count(self, type: str | None) -> int:
        """Return how many GPUs of a type it has, or of any."""
        return sum(gpus.count for gpus in self.gpus if type in (None, gpus.type))


def nodes() -> list[ClusterNode]:
    """Return every node, once for each partition that it is in."""
    parsed = []
    for line in cluster.ask("sinfo", "--noheader", "--Node", "--format=%N|%P|%c|%m|%G|%f|%l").splitlines():
        name, partition, cpus, memory, gres, features, limit = line.split("|")
        gpus = [Gpus(int(n), type or None) for type, n in re.findall(r"(?:^|,)gpu(?::([^:,()]+))?:(\d+)", gres)]
        parsed.append(
            ClusterNode(
                name, partition.rstrip("*"), partition.endswith("*"), int(cpus), int(memory), tuple(gpus),
                frozenset(features.split(",")), minutes(limit) if limit[0].isdigit() else math.inf,
            )
        )  # fmt: skip
    return parsed


def resolve_resources(hardware: HardwareConfig, nodes: Iterable[ClusterNode]) -> HardwareConfig:
    """Fill in the GPUs and cores that the user left open.

    Args:
        hardware: What is asked for.
        nodes: What the cluster has.

    Raises:
        UserError: The cluster cannot provide it.
    """
    nodes = _of_partition(hardware, list(nodes))
    where = f"partition {hardware.partition or nodes[0].partition}"
    longest = max(node.minutes for node in nodes)
    if hardware.minutes > longest:
        raise UserError(f"hardware.time={hardware.time} is longer than {where} allows: {longest:.0f} minutes")
    nodes = _with_feature(hardware, nodes, where)
    if hardware.nodes > len(nodes):
        raise UserError(f"hardware.nodes={hardware.nodes} is more than {where} has: {len(nodes)}")
    gpus = _gpus(hardware, nodes, where)
    nodes = [node for node in nodes if node.count(gpus.type) >= gpus.count]
    if hardware.megabytes is not None:
        most = _most(hardware, nodes, lambda node: node.megabytes)
        _refuse_more("memory", hardware, hardware.megabytes, most, where, unit="M")
        nodes = [node for node in nodes if node.megabytes >= hardware.megabytes]
    cpus = hardware.cpus
    if cpus is None:
        cpus = _most(hardware, nodes, lambda node: _share(node, gpus))
    else:
        _refuse_more("cpus", hardware, cpus, _most(hardware, nodes, lambda node: node.cpus), where)
    return replace(hardware, gpus=str(gpus), cpus=cpus)


def refuse_unknown_accounts(hardware: HardwareConfig) -> None:
    """Refuse an account that is not the user's, or an unknown quality of service, where SLURM knows them.

    Many clusters would take either without a word.

    Raises:
        UserError: One is not known.
    """
    lists = {
        "account": ("associations", f"user={getpass.getuser()}", "format=account"),
        "qos": ("qos", "format=name"),
    }
    for key, arguments in lists.items():
        if wanted := getattr(hardware, key):
            result = subprocess.run(
                ["sacctmgr", "--noheader", "--parsable2", "show", *arguments], capture_output=True, text=True
            )
            known = sorted(set(result.stdout.split())) if result.returncode == 0 else []  # it fails where none are kept
            if known and wanted.lower() not in known:
                raise UserError(
                    f"hardware.{key}={wanted} must be one of {', '.join(known)}{did_you_mean(wanted, known)}"
                )


def _of_partition(hardware: HardwareConfig, nodes: list[ClusterNode]) -> list[ClusterNode]:
    names, wanted = sorted({node.partition for node in nodes}), hardware.partition
    if wanted is None:
        if defaults := [node for node in nodes if node.is_default]:
            return defaults
        raise UserError(f"this cluster has no default partition; give hardware.partition, one of {', '.join(names)}")
    if unknown := [name for name in wanted.split(",") if name not in names]:
        raise UserError(
            f"hardware.partition={wanted} must be one of {', '.join(names)}{did_you_mean(unknown[0], names)}"
        )
    return [node for node in nodes if node.partition in wanted.split(",")]


def _with_feature(hardware: HardwareConfig, nodes: list[ClusterNode], where: str) -> list[ClusterNode]:
    wanted = hardware.constraint
    if not wanted or not re.fullmatch(r"[\w.-]+", wanted):  # an expression is SLURM's to read
        return nodes
    if matching := [node for node in nodes if wanted in node.features]:
        return matching
    known = sorted(frozenset.union(*(node.features for node in nodes)) - {"(null)"})
    advice = f"it must be one of {', '.join(known)}" if known else "they have none: leave it out"
    raise UserError(f"hardware.constraint={wanted} is no feature of a node of {where}; {advice}")


def _gpus(hardware: HardwareConfig, nodes: list[ClusterNode], where: str) -> Gpus:
    """Return the GPUs of each node: those that are asked for, or the most that enough nodes have."""
    wanted = hardware.wanted_gpus
    if wanted is None and hardware.device == "cpu":
        wanted = Gpus(0)
    types = sorted({gpus.type for node in nodes for gpus in node.gpus if gpus.type})
    if wanted and wanted.type and wanted.type not in types:
        advice = f"take {' or '.join(types)}" if types else f"take hardware.gpus={wanted.count}"
        raise UserError(f"hardware.gpus={hardware.gpus}: no node of {where} has GPUs of type {wanted.type}; {advice}")
    most = _most(hardware, nodes, lambda node: node.count(wanted.type if wanted else None))
    gpus = wanted or Gpus(most)
    _refuse_more("gpus", hardware, gpus.count, most, where)
    if gpus.count == 0 and (hardware.device == "cuda" or hardware.processes == 0):
        raise UserError(
            f"hardware.device={hardware.device} hardware.processes={hardware.processes} needs GPUs, but the nodes of "
            f"{where} have none; take another hardware.partition, or hardware.device=cpu hardware.processes=N"
        )
    if hardware.device == "cuda" and hardware.processes > gpus.count:
        raise UserError(
            f"hardware.processes={hardware.processes} are more than the hardware.gpus={gpus} that each node gives "
            f"them; take hardware.processes={gpus.count} or fewer"
        )
    return gpus


def _share(node: ClusterNode, gpus: Gpus) -> int:
    """Return the cores of a node that go with so many of its GPUs."""
    return max(1, node.cpus * gpus.count // node.count(None)) if gpus.count else node.cpus


def _most(hardware: HardwareConfig, nodes: list[ClusterNode], amount: Callable[[ClusterNode], int]) -> int:
    """Return the most of something that enough nodes have; 0 where there are too few nodes."""
    return sorted([0] * hardware.nodes + [amount(node) for node in nodes])[-hardware.nodes]


def _refuse_more(key: str, hardware: HardwareConfig, wanted: int, most: int, where: str, unit: str = "") -> None:
    if wanted > most:
        each = "a node" if hardware.nodes == 1 else f"each of {hardware.nodes} nodes"
        raise UserError(f"hardware.{key}={getattr(hardware, key)} is more than {each} of {where} has: {most}{unit}")
