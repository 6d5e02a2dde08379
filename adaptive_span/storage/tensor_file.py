"""Read a file of tensors and plain values that anybody may have written: it is data, and nothing in it is run.

`torch.load(weights_only=True)` alone lets a pickle call constructors with any size (a bytearray of 100 GB), and
unpacks what a zip claims to hold. So a file is looked through first: only the few names that `torch.save` writes for
tensors and containers, nothing compressed, no two members of one name. What comes out is checked to be no larger than
the file.
"""

import io
import os
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from torch import Tensor

from adaptive_span.errors import UserError, first_line

NAMES = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch Size"}
STORAGES = {f"torch {kind}Storage" for kind in "Float Double Half BFloat16 Long Int Short Char Byte Bool".split()}
LEGACY_PICKLES = 5  # one after the other, before the numbers: magic, version, system, object, keys
DEPTH, VALUES = 32, 20_000_000  # more than any training state has
# All that zipfile, pickletools and torch raise for bytes that somebody has changed.
DAMAGED = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OSError,
    RuntimeError, TypeError, UnpicklingError, ValueError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read(path: Path) -> Any:
    """Return what `torch.save` wrote to `path`, on the CPU.

    Raises:
        UserError: The file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        what = "which is a folder" if path.is_dir() else "nor anything else of that name"
        raise UserError(f"there is no checkpoint {path}, {what}; a run's are in its folder checkpoints")
    if not os.access(path, os.R_OK):
        raise UserError(f"the checkpoint {path} may not be read (permission denied)")
    try:
        with warnings.catch_warnings(action="ignore"), open(path, "rb") as file:  # of old or strange escapes
            start = file.read(2)
            if start != b"PK" and start[:1] != b"\x80":  # a zip file or, long ago, a pickle
                raise UserError(f"{path} is no checkpoint")
            file.seek(0)
            wanted = _names_in_zip(file) if start == b"PK" else _names(file, LEGACY_PICKLES)
            strange = wanted - NAMES - STORAGES
            state = None if strange else torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise UserError(f"the checkpoint {path} is damaged: {first_line(error)}") from None
    if strange:
        raise UserError(
            f"{path} asks to run code when it is loaded ({min(strange).replace(' ', '.')}), which was refused; a "
            f"checkpoint holds tensors and plain values alone"
        )
    _check_plain(state, path)
    return state


def _names_in_zip(file: IO[bytes]) -> set[str]:
    """Return what the pickle in a zip file asks to import.

    Raises:
        ValueError: torch does not write such a zip.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = Counter(member.filename for member in members)
        if any(count > 1 for count in names.values()):
            raise ValueError("two of its members have one name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("it holds compressed members, which torch does not write")
        if sum(member.file_size for member in members) > file.seek(0, os.SEEK_END):
            raise ValueError("its members claim to be larger than the file")
        if damaged := archive.testzip():  # torch.load itself does not look at the checksums
            raise ValueError(f"the checksum of {damaged} is wrong")
        pickles = [name for name in names if name.endswith(".pkl")]
        return set().union(*(_names(io.BytesIO(archive.read(name)), 1) for name in pickles))


def _names(file: IO[bytes], pickles: int) -> set[str]:
    """Return all that `pickles` pickles, one after the other, ask to import, as "module name"."""
    imports = set()
    for _ in range(pickles):
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("GLOBAL", "INST"):
                imports.add(str(argument))
            elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                imports.add(opcode.name.lower())
    return imports


def _check_plain(state: Any, path: Path) -> None:
    """Raise `UserError` unless the state is containers of plain values and dense tensors, no larger than the file."""
    storages: dict[int, int] = {}
    for value in _leaves(state, path):
        if not isinstance(value, Tensor):
            continue
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise UserError(f"the checkpoint {path} holds a tensor that is not dense; one of this project does not")
        storage = value.untyped_storage()
        if value.numel() * value.element_size() > storage.nbytes():
            raise UserError(f"the checkpoint {path} holds a tensor of {tuple(value.shape)} that repeats fewer numbers")
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(storages.values()) > path.stat().st_size:
        raise UserError(f"the checkpoint {path} is damaged: its tensors are larger than the file")


def _leaves(state: Any, path: Path) -> Iterator[Any]:
    """Yield each value within containers. Refuse too many or too deep ones, so that none can hold itself."""
    waiting, seen = [(state, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > DEPTH or seen > VALUES:
            raise UserError(f"the checkpoint {path} holds containers within containers without end")
        if isinstance(value, dict):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple):
            waiting += [(part, depth + 1) for part in value]
        elif value is None or isinstance(value, Tensor | str | int | float | bytes):
            yield value
        else:
            raise UserError(f"the checkpoint {path} holds a {type(value).__name__}, which one of this project does not")
