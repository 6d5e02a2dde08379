"""Compile C++ for this processor, to run on the threads of torch, and keep what was built."""

import ctypes
import functools
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from adaptive_span.hardware import machine
from adaptive_span.hardware.compilers import cpp_compiler
from adaptive_span.storage.user_cache import user_cache

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC")


@functools.cache
def library(source: Path) -> ctypes.CDLL | None:
    """Return a compiled file, built where it is not yet; print why and return None where it cannot be."""
    try:
        return ctypes.CDLL(str(_build(source)))
    except (OSError, subprocess.CalledProcessError) as error:
        message = (error.stderr if isinstance(error, subprocess.CalledProcessError) else "") or str(error)
        reason = message.splitlines()[0]
        print(
            f"warning: attention is not compiled for this CPU ({reason}); PyTorch's operations compute it",
            file=sys.stderr,
        )
        return None


def _build(source: Path) -> Path:
    """Build a file for this processor and this release of torch."""
    compiler = cpp_compiler()
    if not shutil.which(compiler):
        raise FileNotFoundError(f"there is no C++ compiler {compiler}")
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    what = (*texts, compiler, *FLAGS, torch.__version__, _processor())
    key = hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
    folder = user_cache()
    built = folder / f"{source.stem}-{key}.so"
    if not built.exists():
        folder.mkdir(parents=True, exist_ok=True)
        libraries = Path(torch.__file__).parent / "lib"
        with tempfile.TemporaryDirectory(dir=folder) as private:  # another process may be building the same
            compiled, linked = Path(private, "compiled.o"), Path(private, "linked.so")
            _run(compiler, *FLAGS, "-c", source, "-o", compiled)
            # Without -fopenmp: torch's own OpenMP then runs the threads.
            _run(compiler, "-shared", compiled, "-o", linked, f"-L{libraries}", "-ltorch_cpu")
            linked.replace(built)
    return built


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _processor() -> str:
    """Return what decides which instructions `-march=native` means."""
    return "\n".join([platform.machine(), *sorted(machine.instructions() or ())])
