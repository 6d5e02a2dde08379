"""Find the compilers that Triton and Inductor need before they can build anything."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path


def why_triton_cannot_build() -> str | None:
    """Return what Triton lacks to build the module through which it launches kernels, as part of a sentence.

    It builds that in C at its first launch, with `CC`, gcc or clang, and against Python's own headers.
    """
    given = os.environ.get("CC")
    if given is not None and not shutil.which(given):
        return f"Triton needs a C compiler, and CC={given} is none"
    if given is None and not (shutil.which("gcc") or shutil.which("clang")):
        return "Triton needs a C compiler, and there is neither gcc nor clang"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Triton needs Python's headers, and there is no Python.h (a package like python3-dev has it)"
    return None


def why_inductor_cannot_build(kind: str) -> str | None:
    """Return what torch.compile lacks on a device of that kind (cpu, cuda, mps), as part of a sentence."""
    if kind == "cuda":
        is_there = importlib.util.find_spec("triton") is not None
        return why_triton_cannot_build() if is_there else "triton is not installed"
    if kind == "mps":
        return "it is untested with hardware.device=mps"
    compiler = cpp_compiler()
    return None if shutil.which(compiler) else f"there is no C++ compiler {compiler}"


def cpp_compiler() -> str:
    """Return the command that compiles C++ here, whether or not it is there."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
