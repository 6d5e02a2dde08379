"""Machines that lack something say so, and do what they can."""

import sys

import pytest

from tests.conftest import ROOT, finish, sentence

# A program, on a processor without instructions for bf16.
WITHOUT_BF16 = """
import runpy, sys, torch
torch.cpu.get_capabilities = lambda: {"avx2": True, "avx512_f": True, "avx512_bf16": False}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
EMULATED = "warning: this processor has no instructions for bf16: it is emulated, and slower than fp32\n"


def test_bf16_that_is_emulated_is_told_at_the_start(launch, tmp_path):
    program = (sys.executable, "-c", WITHOUT_BF16)
    launched = launch("run.dir=run", "train.steps=2", "hardware.precision=bf16", program=program).stdout
    assert launched.startswith(EMULATED)
    words = ["evaluate.py", "run=run", "hardware=cpu", "hardware.precision=bf16"]
    evaluated = finish([*program, str(ROOT / words[0]), *words[1:]], tmp_path).stdout
    assert evaluated.startswith(EMULATED)
    benchmark = str(ROOT / "adaptive_span" / "benchmark" / "__main__.py")
    words = "attention --model tiny --repeats 1 --cpu --attention banded --no-memory --dtype".split()
    assert finish([*program, benchmark, *words, "bf16"], ROOT).stdout.startswith(EMULATED)
    assert EMULATED not in finish([*program, benchmark, *words, "fp32"], ROOT).stdout


# A program, on a Python without what that of Windows lacks; it says that it is one once everything is imported, since
# Python's own modules would then look for parts of Windows.
ON_WINDOWS = """
import importlib, psutil, runpy, signal, sys  # psutil has a part of its own for each system
sys.modules |= dict.fromkeys(("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"))
for name in "SIGALRM SIGHUP SIGKILL SIGUSR1 SIGUSR2 pthread_sigmask sigpending sigwait".split():
    delattr(signal, name)
importlib.import_module(sys.argv[1])
sys.platform = "win32"
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""
PROGRAMS = "launch evaluate adaptive_span.benchmark.__main__ adaptive_span.export adaptive_span.published".split()
PROGRAMS += "adaptive_span.slurm.__main__ adaptive_span.sweep".split()


@pytest.mark.parametrize("program", PROGRAMS)
def test_windows_is_refused_in_one_sentence(program):
    result = finish([sys.executable, "-W", "ignore", "-c", ON_WINDOWS, program], ROOT, ok=False)
    assert sentence(result).startswith("this does not run on Windows itself; run it in WSL")


# pytest, on a machine that lacks what only downloads and the command line need; hydra's pytest plugin too.
COLLECT = """
import os, sys, pytest
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
sys.modules |= dict.fromkeys("hydra omegaconf wandb submitit pooch requests matplotlib huggingface_hub".split())
sys.exit(pytest.main("-p pytest_timeout -p xdist.plugin -m gpu -n0 --collect-only -q".split()))
"""


def test_gpu_tests_are_collected_where_only_torch_and_triton_are():
    out = finish([sys.executable, "-c", COLLECT], ROOT).stdout
    for file in ("test_gpu", "test_fused"):
        assert f"tests/{file}.py::" in out
