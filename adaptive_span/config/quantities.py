"""Read times, memory and GPUs as people, SLURM and its `sinfo` write them, into numbers."""

import math
import re
from dataclasses import dataclass

from adaptive_span.errors import UserError

MEGABYTES = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}


def minutes(time: str | int) -> int:
    """Return the minutes of 90, 30:00 (m:s), 2:00:00 (h:m:s), 1-12 (d-h), 1-12:30 or 1-12:00:00, rounded up.

    Raises:
        UserError: It is no such time.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(time), re.ASCII)
    if match is None or not re.search("[1-9]", str(time)):
        raise UserError(
            f"hardware.time={time} must be minutes, like 90, or a time as SLURM writes it, like 2:00:00 or 1-12:00:00"
        )
    days, *clock = match.groups()
    first, second, third = (int(part or 0) for part in clock)
    if days is not None or clock[2] is not None:
        return int(days or 0) * 1440 + first * 60 + second + math.ceil(third / 60)
    return first + math.ceil(second / 60)


def megabytes(memory: str | int) -> int:
    """Return the MB of 16, 16G, 16GB, 16000M or 1.5T. A number alone counts GB.

    Raises:
        UserError: It is no such size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:([KMGT])(?:i?B)?)?", str(memory), re.ASCII | re.IGNORECASE)
    if match is None or not re.search("[1-9]", str(memory)):
        raise UserError(f"hardware.memory={memory} must be GB, like 16, or have its unit, like 16GB or 16000M")
    return math.ceil(float(match[1]) * MEGABYTES[(match[2] or "G").upper()])


@dataclass(frozen=True)
class Gpus:
    """A number of GPUs per node, of one type or of any."""

    count: int
    type: str | None = None

    def __str__(self) -> str:
        return f"{self.type}:{self.count}" if self.type else str(self.count)


def gpus(wanted: str | int) -> Gpus:
    """Return what 2, a100:2 or gpu:a100:2 asks for.

    Raises:
        UserError: It is no such thing.
    """
    match = re.fullmatch(r"(?:gpu:)?(?:([\w.-]+):)?(\d+)", str(wanted), re.ASCII)
    if match is None:
        raise UserError(f"hardware.gpus={wanted} must be a number, like 2, or a type with a number, like a100:2")
    return Gpus(int(match[2]), match[1])
