"""Find out what the machine has. Nothing here fails where the system does not say."""

import psutil


def memory(processes: int = 1) -> int | None:
    """Return the bytes that one of so many processes may hope for, or None where the system does not say.

    That is its share of the main memory, or what is left of its address space where that is limited (`ulimit -v`).
    """
    try:
        share = psutil.virtual_memory().total // processes
        left = _address_space_left()
    except (OSError, psutil.Error):  # a Linux without /proc, say
        return None
    return share if left is None else min(share, left)


def _address_space_left() -> int | None:
    """Return the bytes that this process may still map, or None where nothing limits them."""
    if not hasattr(psutil, "RLIMIT_AS"):  # which Linux and FreeBSD have
        return None
    process = psutil.Process()
    soft, _ = process.rlimit(psutil.RLIMIT_AS)
    return None if soft == psutil.RLIM_INFINITY else soft - process.memory_info().vms
