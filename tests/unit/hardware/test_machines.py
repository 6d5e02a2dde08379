"""Machines that lack something say so, and do what they can."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.distributed import Process, pick_device
from adaptive_span.errors import UserError
from adaptive_span.hardware import compilers, precision
from adaptive_span.hardware.gpu import Gpu, expand_segments, is_built_for
from adaptive_span.storage.stored import read_yaml
from adaptive_span.training.settle import settle
from tests.conftest import ROOT, finish, sentence
from tests.unit.config.test_config import composed

# A program, on a processor without instructions for bf16.
WITHOUT_BF16 = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
from adaptive_span.hardware import machine
machine.instructions = lambda: {{"avx2", "avx512f"}}
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
import importlib, os, psutil, runpy, signal, sys  # psutil has a part of its own for each system
os.environ["USERNAME"] = "someone"  # Windows sets it; without it torch 2.11 looks the user up in pwd
sys.modules |= dict.fromkeys(("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"))
for name in "SIGALRM SIGHUP SIGKILL SIGUSR1 SIGUSR2 pthread_sigmask sigpending sigwait".split():
    delattr(signal, name)
importlib.import_module(sys.argv[1])
sys.platform = "win32"
runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
"""
PROGRAMS = ("launch", "evaluate", "adaptive_span.__main__", "adaptive_span.benchmark.__main__")


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
        assert f"/{file}.py::" in out


OLD, NEW = Gpu("Tesla T4", (7, 5)), Gpu("NVIDIA H200", (9, 0))
ROCM = Gpu("AMD Instinct MI300X", (9, 4), is_rocm=True)


@pytest.mark.parametrize(
    ("asked", "before", "kind", "gpu", "chosen", "reason"),
    [
        ("auto", None, "cpu", None, "fp32", "no GPU"),
        ("auto", None, "mps", None, "fp32", "a GPU of Apple's is untested in bf16"),
        ("auto", None, "cuda", OLD, "fp32", "Tesla T4 of compute capability 7.5 has no bf16 in hardware"),
        ("auto", None, "cuda", NEW, "bf16", "NVIDIA H200 of compute capability 9.0 multiplies in it"),
        ("auto", None, "cuda", ROCM, "fp32", "bf16 is untested on ROCm"),
        ("auto", "fp32", "cuda", NEW, "fp32", "as it was begun"),
        ("auto", "bf16", "cpu", None, "bf16", "as it was begun"),
        ("auto", "tf32", "cuda", NEW, "tf32", "as it was begun"),
        ("fp32", "bf16", "cuda", NEW, "fp32", "as asked for"),
        ("bf16", "fp32", "cuda", ROCM, "bf16", "as asked for"),
    ],
)
def test_the_precision_is_the_checkpoint_s_or_what_the_hardware_is_fast_in(asked, before, kind, gpu, chosen, reason):
    assert precision.decide(asked, before, kind, gpu) == (chosen, reason)


@pytest.mark.parametrize(
    ("asked", "before", "kind", "gpu", "sentence"),
    [
        ("bf16", None, "cuda", OLD, "hardware.precision=bf16 would be emulated on Tesla T4 of compute capability 7.5, "
         "slower than fp32: the hardware has it from 8.0 on; take hardware.precision=fp32"),
        ("auto", "bf16", "cuda", OLD, "the run was begun with hardware.precision=bf16, which would be emulated on"),
        ("bf16", None, "mps", None, "hardware.precision=bf16 is untested with hardware.device=mps; take"),
        ("tf32", None, "cpu", None, "hardware.precision=tf32 needs an NVIDIA GPU of compute capability 8.0 or more, "
         "and this is a device of kind cpu; take hardware.precision=fp32"),
        ("tf32", None, "cuda", OLD, "hardware.precision=tf32 needs an NVIDIA GPU of compute capability 8.0 or more, "
         "and this is Tesla T4 of compute capability 7.5; take"),
        ("tf32", None, "cuda", ROCM, "hardware.precision=tf32 needs an NVIDIA GPU"),
        ("auto", "fp64", "cuda", NEW, "the run was begun with hardware.precision=fp64, which this version"),
    ],
)  # fmt: skip
def test_a_precision_that_the_hardware_lacks_is_one_sentence(asked, before, kind, gpu, sentence):
    with pytest.raises(UserError) as refused:
        precision.decide(asked, before, kind, gpu)
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(
    ("architectures", "runs", "does_not"),
    [
        ("sm_75 sm_80 sm_86 sm_90 sm_100 sm_120", [(7, 5), (8, 0), (8, 9), (9, 0), (12, 0)], [(6, 1), (7, 0), (11, 0)]),
        ("sm_80 compute_90", [(8, 6), (9, 0), (12, 1)], [(7, 5)]),
        ("sm_86 sm_90a", [(8, 6), (8, 9), (9, 0)], [(8, 0), (10, 0)]),
    ],
)
def test_which_gpus_a_build_of_torch_holds_code_for(architectures, runs, does_not):
    for capability in (*runs, *does_not):
        assert is_built_for(capability, architectures.split()) == (capability in runs), capability


def test_tf32_is_put_back():
    before = torch.backends.cuda.matmul.fp32_precision
    with precision.tf32(True):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_without_a_c_compiler_triton_builds_nothing(monkeypatch):
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    assert compilers.why_triton_cannot_build() is None
    monkeypatch.setenv("CC", "nowhere")
    assert compilers.why_triton_cannot_build() == "Triton needs a C compiler, and CC=nowhere is none"
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert compilers.why_triton_cannot_build() == "Triton needs a C compiler, and there is neither gcc nor clang"
    assert compilers.why_inductor_cannot_build("cpu") == "there is no C++ compiler g++"


@pytest.mark.parametrize(
    ("hardware", "sentence"),
    [
        ({"precision": "tf32"}, "hardware.precision=tf32 needs an NVIDIA GPU"),
        ({"compile": True}, "hardware.compile=true cannot run here: there is no C++ compiler nowhere; take hardware."),
    ],
)
def test_what_a_cpu_cannot_have_is_one_sentence(hardware, sentence, monkeypatch):
    monkeypatch.setenv("CXX", "nowhere")
    config = replace(composed(), hardware=HardwareConfig(**hardware))
    with pytest.raises(UserError) as refused:
        settle(config, Process(0, 1, torch.device("cpu")), None)
    assert str(refused.value).startswith(sentence)


def test_a_run_that_is_resumed_keeps_its_precision_and_scores_stay_in_fp32(launch, tmp_path):
    launch("run.dir=run", "train.steps=2", "hardware.precision=bf16")
    out = launch("run.dir=run", "train.steps=3").stdout
    assert "\nprecision   bf16 (as it was begun)\n" in out
    assert read_yaml(tmp_path / "run" / "config.yaml")["hardware"]["precision"] == "bf16"
    scored = json.loads((tmp_path / "run" / "evaluation.json").read_text())["splits"]
    finish([sys.executable, str(ROOT / "evaluate.py"), "run=run", "block_size=128"], tmp_path)
    again = json.loads((tmp_path / "run" / "evaluation.json").read_text())["splits"]
    assert again["test"]["bpc"] == pytest.approx(scored["test"]["bpc"], abs=1e-6)
    fp32 = launch("run.dir=run", "train.steps=4", "hardware.precision=fp32").stdout
    assert "\nprecision   fp32 (as asked for)\n" in fp32


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has a GPU of Apple's")
def test_an_apple_gpu_that_is_not_there():
    with pytest.raises(UserError, match=r"^hardware\.device=mps, but torch sees no GPU of Apple's on this machine"):
        pick_device(HardwareConfig(device="mps"))


def test_memory_of_a_gpu_grows_in_segments_unless_the_user_has_set_something():
    environment = {}
    expand_segments(environment)
    assert environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "NCCL_GRAPH_REGISTER": "0"}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        environment = {name: "max_split_size_mb:64"}
        expand_segments(environment)
        assert environment == {name: "max_split_size_mb:64"}
