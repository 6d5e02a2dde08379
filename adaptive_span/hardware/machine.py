"""Find out how many cores and how much memory there are. Nothing here fails where the system does not report it."""

import os
import platform
import sys
from pathlib import Path

import psutil

CORES = "ADAPTIVE_SPAN_CORES"  # an environment variable; where nothing confines a job to its cores, it says how many


def memory(processes: int = 1) -> int | None:
    """Return the bytes that one of `processes` processes may hope for; None where the system does not report it.

    That is its share of the main memory, or what is left of its address space where that is limited (`ulimit -v`).
    """
    try:
        share = psutil.virtual_memory().total // processes
        left = _address_space_left()
    except (OSError, psutil.Error):  # for example, a Linux without /proc
        return None
    return share if left is None else min(share, left)


def peak_memory() -> int:
    """Return the most bytes of main memory that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():
        kib = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(kib)
    import resource  # which Windows lacks

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def cores() -> int:
    """Return the cores that processes here may use: as many as a scheduler gave them, or all that they may run on."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, int(os.environ.get(CORES, allowed)))


def processor() -> str:
    """Return the name of the processor as the system knows it."""
    names = [line.partition(":")[2].strip() for line in _described() if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()


def instructions() -> set[str] | None:
    """Return the extensions of the processor's instructions, as Linux names them; None where nothing lists them."""
    lists = [line.partition(":")[2].split() for line in _described() if line.startswith(("flags", "Features"))]
    return set(lists[0]) if lists else None


def _described() -> list[str]:
    """Return the lines in which Linux describes the processor; none elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def may_have_gpu() -> bool:
    """Return whether a driver of GPUs is visible. torch, which knows, takes seconds to import."""
    drivers = ("nvidiactl", "kfd", "dxg")  # of NVIDIA, of AMD, of WSL
    return any(Path("/dev", name).exists() for name in drivers)


def _address_space_left() -> int | None:
    """Return the bytes that this process may still map, or None where nothing limits them."""
    if not hasattr(psutil, "RLIMIT_AS"):  # which Linux and FreeBSD have
        return None
    process = psutil.Process()
    soft, _ = process.rlimit(psutil.RLIMIT_AS)
    return None if soft == psutil.RLIM_INFINITY else soft - process.memory_info().vms
