"""What the machine or the data make impossible is told in one sentence, and nothing half-made is left behind."""

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.schema import Config
from adaptive_span.config.train_schema import TrainConfig
from adaptive_span.training.out_of_memory import step_bytes
from tests.conftest import ENVIRONMENT, sentence


def left(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name != "data"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ["model.block_size=700"],
            "the valid split holds 5,000 tokens, which in 8 rows makes 625 a row: shorter than a block of 700",
        ),
        (["train.batch_size=9", "train.batch_split=2"], "train.batch_size=9 must be divisible by"),
        (["train.init_from=nowhere.pt"], "there is no checkpoint nowhere.pt"),
        (["optimizer.lr=1e30", "optimizer.clip=1e30"], "the training has diverged: the loss is nan at step 2"),
        (["run.dir=/proc/run"], "run.dir=/proc/run cannot be written to"),
    ],
)
def test_what_cannot_work_is_told(settings, told, launch, tmp_path):
    result = launch("run.dir=run", *settings, ok=False)
    assert sentence(result).startswith(told)
    if "diverged" not in told:
        assert left(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("hardware", ["gpu", "node"])
def test_a_gpu_that_is_not_there(hardware, launch, tmp_path):
    result = launch("run.dir=run", f"hardware={hardware}", ok=False)
    assert sentence(result).startswith("hardware.device=cuda, but torch sees no GPU on this machine; take hardware=cpu")
    assert left(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ([], "no GPU that Triton supports"),
        (["model.hidden_size=512", "model.num_heads=2"], "heads of 256 are larger than 128"),
    ],
)
def test_attention_that_cannot_run_here(settings, reason, launch, tmp_path):
    result = launch("run.dir=run", "model.attention=fused", "data.path=nowhere", *settings, ok=False)
    assert sentence(result).startswith(f"model.attention=fused cannot run here: {reason}; take model.attention=banded")
    assert left(tmp_path) == []


def test_two_processes_tell_it_once(launch, tmp_path):
    result = launch("run.dir=run", "hardware.processes=2", "model.block_size=700", ok=False)
    assert "shorter than a block of 700" in sentence(result)
    assert left(tmp_path) == []


def test_a_run_directory_that_may_only_be_read(command, tmp_path):
    directory = tmp_path / "readonly"
    directory.mkdir(mode=0o555)
    words = command(f"run.dir={directory}/run")
    if os.getuid() == 0:  # for whom permissions mean something only without this capability
        words = ["setpriv", "--bounding-set", "-dac_override", *words]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
    assert f"run.dir={directory}/run cannot be written to (Permission denied)" in sentence(result)


def test_a_run_directory_in_use(command, tmp_path):
    with subprocess.Popen(command("run.dir=run", "train.steps=100000"), cwd=tmp_path, env=ENVIRONMENT) as first:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert first.poll() is None
        second = subprocess.run(
            command("run.dir=run", "train.steps=100000"), cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT
        )
        assert sentence(second).startswith("another process is training in run.dir=run")
        first.terminate()


@pytest.fixture(scope="module")
def mapped() -> int:
    """Bytes of addresses that torch's libraries take: 0.6 GiB, with CUDA 4.6."""
    size = "[line] = [line for line in open('/proc/self/status') if line.startswith('VmSize')]; print(line.split()[1])"
    done = subprocess.run([sys.executable, "-c", f"import torch; {size}"], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout)


def test_out_of_memory_names_a_setting_that_fits(command, mapped, tmp_path):
    limit = mapped + 1450 * 2**20
    settings = "train.batch_size=192 model.num_layers=1 model.num_heads=16 model.block_size=64 model.max_span=1024"
    settings += " model.span_init=1 model.attention=dense"
    settings += f" train.steps=1 validation.blocks=1 data.path={tmp_path} run.dir=run"
    words = command(*settings.split())
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_bytes(b"text\n" * 2600)

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        return subprocess.run(
            [*words, *more], cwd=tmp_path, capture_output=True, text=True, preexec_fn=limited, env=ENVIRONMENT
        )

    told = sentence(run())
    assert told.startswith("out of memory: a step asked for ")
    assert " GiB; train.batch_split=" in told
    advice = told.split("; ")[-1].split(" would need")[0].split()
    assert run(*advice).returncode == 0


NO_PROC = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh", sys.executable)
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may hide /proc")


@needs_root
def test_a_training_needs_no_proc(launch):
    """macOS has none."""
    assert "step 24/24" in launch("run.dir=run", program=NO_PROC).stdout


@needs_root
def test_where_the_memory_is_unknown_its_end_is_told_without_an_amount(launch, mapped):
    settings = "data=stdlib data.path=null train.batch_size=2048 model.num_layers=1 model.num_heads=16"
    settings += " model.max_span=8192 model.span_init=1 run.dir=run"
    limited = ("prlimit", f"--as={mapped + 2450 * 2**20}", *NO_PROC)
    result = launch(*settings.split(), ok=False, program=limited)
    assert result.returncode == 2
    *others, told = result.stderr.splitlines()
    assert all("cpuinfo" in line for line in others), others  # which torch prints
    assert told.startswith("error: out of memory: a step asked for ")
    assert " per process, of an unknown amount; train.batch_split=2 would need about " in told


def test_the_count_of_bytes_grows_with_what_costs_memory():
    config = Config(model=ModelConfig("test", 2, 32, 64, 4, 1024, 64), train=TrainConfig(8, 0, 0, 16))
    config.optimizer.name = "adagrad"
    span_bounds = [[64, 64, 64, 64], [1024, 64, 64, 64]]
    full = step_bytes(config, 1, 10_000, span_bounds)
    assert step_bytes(config, 2, 10_000, span_bounds) < full
    assert step_bytes(config, 1, 10_000, [[64] * 4] * 2) < full
    fused = Config(**vars(config) | {"model": replace(config.model, attention="fused")})
    assert step_bytes(fused, 1, 10_000, span_bounds) < full
    config.hardware.activation_checkpointing = True
    assert step_bytes(config, 1, 10_000, span_bounds) < full
