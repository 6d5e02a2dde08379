"""Training in real processes: to its end, stopped and continued, in two processes, tracked."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from glob import glob
from pathlib import Path

import pytest
import torch

from adaptive_span.checkpoint import files
from adaptive_span.export.card import scores_beside
from adaptive_span.reporting.scores import summaries
from adaptive_span.training.interruption import Interruption
from tests.conftest import ENVIRONMENT, ROOT, TIMES, finish, metrics, sentence


def newest(run: Path) -> dict:
    return torch.load(max((run / "checkpoints").glob("step_*.pt")), weights_only=True)


def assert_same_run(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    first, second = newest(one), newest(other)
    assert first["step"] == second["step"]
    assert first.keys() == second.keys()
    for part in ("model", "cache", "stream", *(["average"] if "average" in first else [])):
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)
    torch.testing.assert_close(first["optimizer"]["state"], second["optimizer"]["state"], rtol=0, atol=0)


def test_a_run_leaves_what_it_promises(launch, tmp_path):
    out = launch("run.dir=run", "train.span_penalty=0").stdout
    run = tmp_path / "run"
    lines = metrics(run)
    assert [line["step"] for line in lines] == [5, 10, 12, 15, 20, 24]
    assert [line["step"] for line in lines if "valid/bpc" in line] == [12, 24]
    keys = "step train/bpc valid/bpc span/mean span/max flops_per_token lr grad_norm spans".split()
    assert lines[-1].keys() == set(keys)
    assert [len(layer) for layer in lines[-1]["spans"]] == [4, 4]
    assert sum(map(sum, lines[-1]["spans"])) / 8 == pytest.approx(lines[-1]["span/mean"], abs=0.05)
    measured = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert measured["ms_per_step"] * measured["tokens_per_second"] == pytest.approx(1000 * 8 * 16)
    assert 0 < measured["mfu"] < 1
    assert 50 < measured["peak_memory_mib"] < 4000
    assert lines[-1]["train/bpc"] < lines[0]["train/bpc"] - 0.5
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "best.pt",
        "step_00000020.pt",
        "step_00000024.pt",
    ]
    assert (run / "figures" / "spans.png").read_bytes().startswith(b"\x89PNG")
    scores = json.loads((run / "evaluation.json").read_text())
    assert scores["protocol"] == "exact"
    assert [scores["splits"][split]["tokens"] for split in ("valid", "test")] == [4999, 4000]  # all but the first
    assert f"{scores['splits']['test']['bpc']:.4f}" in out
    for line in ("train on", "evaluate", "layer", "metrics"):
        assert f"\n{line}" in out
    text = next(line for line in out.splitlines() if line.startswith("data ")).removeprefix("data        ")
    assert text.endswith(": train 40,000, valid 5,000, test 4,001 bytes, vocabulary 256")
    assert out.splitlines()[:10] == [
        "model       tiny: 2 layers × 4 heads, hidden 32, ffn 64, spans up to 96",
        "parameters  34,248",
        f"data        {text}",
        "device      cpu (as asked for)",
        "precision   fp32 (no GPU)",
        "attention   banded (no GPU that Triton supports)",
        "graphs      off (no GPU that records them)",
        "run         run",
        "tracker     none",
        "training for 24 steps",
    ]


def test_averaged_weights_are_kept_and_scored_beside_the_trained_ones(launch, text, tmp_path):
    def scores() -> dict:
        return json.loads((tmp_path / "run" / "evaluation.json").read_text())

    out = launch("run.dir=run", "train.average=0.9").stdout
    launch("run.dir=plain")
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "valid_average/bpc" in line] == [12, 24]
    for line, plain in zip(lines, metrics(tmp_path / "plain"), strict=True):
        assert {key: value for key, value in line.items() if key != "valid_average/bpc"} == plain
    scored = scores()
    averaged = scored["average"]
    assert averaged["splits"]["test"]["bpc"] != scored["splits"]["test"]["bpc"]
    assert f"\ntest, averaged weights   {averaged['splits']['test']['bpc']:.4f}\n" in out
    assert f"\naverage   {averaged['checkpoint']} (step {averaged['step']})\n" in out

    best, best_average = (tmp_path / "run" / "checkpoints" / name for name in ("best.pt", "best_average.pt"))
    assert averaged["checkpoint"] == "run/checkpoints/best_average.pt"
    for program in (["checkpoint=run/checkpoints/best_average.pt", "output=scored"], ["run=run"]):
        finish([sys.executable, str(ROOT / "evaluate.py"), *program, "hardware=cpu", "block_size=128"], tmp_path)
    again = json.loads((tmp_path / "scored" / "evaluation.json").read_text())
    assert again["splits"]["test"]["bpc"] == pytest.approx(averaged["splits"]["test"]["bpc"], abs=1e-6)
    assert scores()["average"] == averaged
    assert [each.name for each in summaries(tmp_path / "run")] == [
        "exact, of its own text",
        "exact, of its own text, averaged weights",
    ]
    for file, expected in ((best, scores()["splits"]), (best_average, averaged["splits"])):
        assert scores_beside(file, 24)["splits"] == expected

    changed = launch("run.dir=run", "train.average=0.99", ok=False)
    assert "train.average (0.9 → 0.99)" in sentence(changed)
    begun_without = launch("run.dir=plain", "train.average=0.99", ok=False)
    assert "train.average (0.0 → 0.99)" in sentence(begun_without)
    last = tmp_path / "run" / "checkpoints" / "step_00000024.pt"
    state = torch.load(last, weights_only=True)
    state["average"]["positions"][0] = torch.inf
    torch.save(state, last)
    strange = sentence(launch("run.dir=run", "train.average=0.9", "train.steps=30", ok=False))
    assert "the average of the weights in run/checkpoints/step_00000024.pt holds weights that are no numbers" in strange


def test_the_default_directory_is_the_same_for_the_same_run(launch, tmp_path):
    launch("train.steps=2")
    assert "is finished after 2 steps" in launch("train.steps=2", "log.every=1", "hardware.processes=1").stdout
    assert "resuming" in launch("train.steps=3").stdout
    launch("train.steps=2", "train.seed=7")
    assert len(list((tmp_path / "runs").glob("files-tiny-*"))) == 2


@pytest.mark.parametrize(
    ("processes", "number"),
    [
        (1, signal.SIGTERM),
        (2, signal.SIGTERM),
        pytest.param(2, signal.SIGINT, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(processes, number, launch, command, tmp_path):
    """A signal reaches all of its processes, as a terminal's Ctrl-C does."""
    settings = ["model.dropout=0.2", f"hardware.processes={processes}", "train.batch_split=2", "train.steps=300"]
    settings += ["train.average=0.95"]
    launch(*settings, "run.dir=straight")
    log = tmp_path / "log"
    with log.open("w") as out:
        words = command(*settings, "run.dir=stopped")
        stopped = subprocess.Popen(words, cwd=tmp_path, stdout=out, stderr=out, env=ENVIRONMENT, start_new_session=True)
        while "step 50/" not in log.read_text():
            assert stopped.poll() is None, log.read_text()
            time.sleep(0.02)
        os.killpg(stopped.pid, number)
        assert stopped.wait(60) == 128 + number
    step = newest(tmp_path / "stopped")["step"]
    assert 50 <= step < 300
    assert f"stopped after step {step} of 300, and saved" in log.read_text()
    assert "shutting down" not in log.read_text()  # which torch would say
    assert f"resuming stopped after step {step}" in launch(*settings, "run.dir=stopped").stdout
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_a_run_that_is_stopped_while_it_is_scored_ends_at_once_and_is_scored_by_the_same_command(
    launch, command, text, tmp_path
):
    """Also where there are scores of earlier weights."""
    shutil.copytree(text, tmp_path / "text")
    (tmp_path / "text" / "test.txt").write_bytes((text / "train.txt").read_bytes() * 8)
    settings = ["run.dir=run", f"data.path={tmp_path / 'text'}"]
    launch(*settings, "train.steps=6")
    words = command(*settings, "train.steps=12")
    stopped = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    while not (tmp_path / "run" / "checkpoints" / "step_00000012.pt").exists():
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(60) == 128 + signal.SIGTERM
    assert not (tmp_path / "run" / "evaluation.json").exists()
    launch(*settings, "train.steps=12")
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["step"] == 12


STOPPED_WHILE_VALIDATING = """
import os, runpy, signal, sys
from adaptive_span.training import trainer
validate = trainer.Trainer._validate
trainer.Trainer._validate = lambda run: (run.state.step == 24 and os.kill(os.getpid(), signal.SIGTERM)) or validate(run)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_run_that_is_stopped_in_its_last_step_is_not_scored(command, tmp_path):
    words = command("run.dir=run", program=(sys.executable, "-c", STOPPED_WHILE_VALIDATING))
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 128 + signal.SIGTERM, result.stderr
    assert "stopped after step 24 of 24, and saved" in result.stdout
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_a_second_ctrl_c_ends_at_once_but_not_the_echo_of_the_first(monkeypatch):
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # of the process that started this one
        assert interruption.received == signal.SIGINT
        monkeypatch.setattr("adaptive_span.training.interruption.AGAIN", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_killed_run_goes_on_from_its_last_checkpoint(launch, tmp_path):
    """A crash is the state of the directory at some moment: later metrics, an older checkpoint, a half-written file."""
    settings = ["train.steps=24", "checkpoint.keep=9", "model.dropout=0.2"]
    launch(*settings, "run.dir=straight")
    crashed = tmp_path / "crashed"
    shutil.copytree(tmp_path / "straight", crashed)
    (crashed / "checkpoints" / "step_00000024.pt").unlink()
    (crashed / "checkpoints" / "step_00000023.pt.writing").write_bytes(b"half")
    with (crashed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 25, "train/b')
    launch(*settings, "run.dir=crashed")
    assert_same_run(tmp_path / "straight", crashed)
    assert [path.name for path in crashed.glob("**/*.writing")] == []


def test_a_damaged_checkpoint_is_passed_over_and_told(launch, tmp_path):
    settings = ["checkpoint.keep=9"]
    launch(*settings, "run.dir=straight")
    damaged = tmp_path / "damaged"
    shutil.copytree(tmp_path / "straight", damaged)
    last = damaged / "checkpoints" / "step_00000024.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 0xFF
    last.write_bytes(content)
    before = damaged / "checkpoints" / "step_00000020.pt"
    before.write_bytes(before.read_bytes()[:3000])
    out = launch(*settings, "run.dir=damaged").stdout
    assert "step_00000024.pt is damaged" in out
    assert "step_00000020.pt is damaged" in out
    assert "resuming damaged after step 10" in out
    assert_same_run(tmp_path / "straight", damaged)


def test_a_damaged_checkpoint_does_not_count_as_one_of_those_to_keep(tmp_path):
    for name in ("step_00000010.pt", "step_00000020.pt", "step_00000030.pt", "best.pt", "step_00000025.pt.writing"):
        (tmp_path / name).touch()
    files.prune(tmp_path, keep=1, step=20)  # 30 has been passed over
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "step_00000020.pt"]


def losses(run: Path) -> list[float]:
    return [line["train/bpc"] * 0.6931471805599453 for line in metrics(run)]


def test_two_processes_train_as_one(launch, tmp_path):
    settings = ["train.steps=20", "log.every=1", "train.average=0.9"]
    launch(*settings, "run.dir=one")
    launch(*settings, "run.dir=two", "hardware.processes=2")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2")
    launch(*settings, "run.dir=torchrun", program=torchrun)
    for run in ("two", "torchrun"):
        assert losses(tmp_path / run) == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
        assert [line["step"] for line in metrics(tmp_path / run)] == list(range(1, 21))  # one writer
        one, other = (  # each process scores its share by its own average
            [line["valid_average/bpc"] for line in metrics(tmp_path / name) if "valid_average/bpc" in line]
            for name in ("one", run)
        )
        assert other == pytest.approx(one, abs=1e-4)


def test_another_number_of_processes_goes_on_with_a_run(launch, tmp_path):
    launch("run.dir=one", "log.every=1", "train.steps=20")
    launch("run.dir=changing", "log.every=1", "train.steps=8", "hardware.processes=2")
    launch("run.dir=changing", "log.every=1", "train.steps=14")
    launch("run.dir=changing", "log.every=1", "train.steps=20", "hardware.processes=2")
    assert losses(tmp_path / "changing") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_threads_are_shared_out(tmp_path):
    """N processes get the cores of one."""
    code = (
        "import os, torch\n"
        "from adaptive_span.config.hardware_schema import HardwareConfig\n"
        "from adaptive_span.distributed import process_group\n"
        "with process_group(HardwareConfig(device='cpu')):\n"
        "    os.write(1, f'threads {torch.get_num_threads()}\\n'.encode())\n"  # in one piece
    )
    (tmp_path / "threads.py").write_text(code)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "threads.py"]
    out = finish(words, tmp_path).stdout
    assert out.count(f"threads {max(1, len(os.sched_getaffinity(0)) // 2)}") == 2


def test_a_changed_configuration_is_refused_but_for_what_may_change(launch, tmp_path):
    launch("run.dir=run", "train.steps=4")
    changed = launch("run.dir=run", "train.steps=4", "optimizer.lr=0.01", "model.ramp=8", ok=False)
    assert sentence(changed) == (
        "run.dir=run was begun with another configuration: model.ramp (32 → 8), optimizer.lr (0.07 → 0.01); "
        "take back the change, or give another run.dir"
    )
    launch("run.dir=run", "train.steps=5", "log.every=1", "validation.every=2", "checkpoint.every=3", "hardware=auto",
           "train.batch_split=2")  # fmt: skip


def test_training_can_begin_with_other_weights(launch, tmp_path):
    launch("run.dir=first")
    first = losses(tmp_path / "first")
    weights = tmp_path / "first" / "checkpoints" / "best.pt"
    launch("run.dir=second", f"train.init_from={weights}", "optimizer=adam", "model.dropout=0.1", "log.every=1")
    assert losses(tmp_path / "second")[0] < first[0] - 0.5
    wrong = launch("run.dir=third", f"train.init_from={weights}", "model.hidden_size=64", ok=False)
    assert "positions has shape (8, 96) there and (16, 96) here" in sentence(wrong)
    assert not (tmp_path / "third").exists()
    longer = launch(
        "run.dir=longer", f"train.init_from={weights}", "train.freeze=weights", "model.max_span=160",
        "hardware.processes=2", "train.batch_split=2", "hardware.precision=bf16",
        "hardware.activation_checkpointing=true", "train.steps=4",
    )  # fmt: skip
    assert "\nparameters  34,760, of which 8 learn\n" in longer.stdout  # 64 more distances of 8 numbers
    before, after = torch.load(weights, weights_only=True)["model"], newest(tmp_path / "longer")["model"]
    assert torch.equal(after["positions"][:, 64:], before.pop("positions"))
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        f"attention_blocks.{layer}.attention.span.fraction" for layer in (0, 1)
    ]


@pytest.mark.parametrize("optimizer", ["adagrad", "adam", "sgd"])
def test_every_optimizer_and_option_trains(optimizer, launch, tmp_path):
    """bf16, activation checkpointing, a split batch and the fine-tuning phase at once; the rate falls to a tenth."""
    launch(
        "run.dir=run",
        f"optimizer={optimizer}",
        "hardware.precision=bf16",
        "hardware.activation_checkpointing=true",
        "train.batch_split=4",
        "train.steps=20",
        "train.finetune_steps=5",
        "log.every=1",
        "model.embedding_dropout=0.1",
    )
    lines = metrics(tmp_path / "run")
    rates = [line["lr"] for line in lines]
    assert rates[:4] == pytest.approx([rates[9] * k / 4 for k in (1, 2, 3, 4)])
    assert rates[20:] == pytest.approx([rates[9] / 10] * 5)
    assert lines[-1]["train/bpc"] < lines[0]["train/bpc"]


def test_compiled_layers_train_the_same_while_spans_change(launch, tmp_path):
    settings = ["train.steps=12", "log.every=1", "train.span_penalty=0", "model.max_span=200", "model.span_init=0.15"]
    launch(*settings, "run.dir=eager")
    launch(*settings, "run.dir=compiled", "hardware.compile=true")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), abs=1e-3)


def wandb_records(run: Path) -> list[list[dict]]:
    """What each part of a run left offline, read back with wandb's own tool."""
    pytest.importorskip("wandb", "0.31", "an older wandb cannot print the records of a run")
    parts = []
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        parts.append([json.loads(line) for line in out.splitlines()])
    return parts


def of_type(records: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in records if record["type"] == kind]


def test_wandb_holds_every_head_and_one_axis_of_steps_over_a_resume(launch, tmp_path):
    launch("run.dir=run", "tracking=offline", "train.steps=10")
    time.sleep(1.1)  # wandb names the folder of each part by the second
    launch("run.dir=run", "tracking=none", "train.steps=11")
    launch("run.dir=run", "tracking=offline", "train.steps=20")
    parts = wandb_records(tmp_path / "run")
    assert len(parts) == 2
    runs = [of_type(part, "run")[0] for part in parts]
    assert runs[0]["run_id"] == runs[1]["run_id"]
    assert runs[0]["config"]["update"]["model"]["hidden_size"] == 32  # plain types, resolved
    logged = [[line["item"] for line in of_type(part, "history")] for part in parts]
    assert [[line["step"] for line in part] for part in logged] == [[5, 10], [12, 15, 20]]
    assert all(line["_step"] == line["step"] for part in logged for line in part)
    heads = {f"span/layer_{layer:02d}/head_{head}" for layer in range(2) for head in range(4)}
    own = {key for key in logged[1][-1] if not key.startswith(("_", "spans/heat_map."))}
    assert own == heads | set(metrics(tmp_path / "run")[-1]) - {"spans"} | set(TIMES)
    pictures = [line["step"] for part in logged for line in part if "spans/heat_map.path" in line]
    assert pictures == [10, 12, 20]  # the validations
    spans = [logged[1][-1][head] for head in heads]
    assert sum(spans) / 8 == pytest.approx(logged[1][-1]["span/mean"])
    assert min(spans) >= 32  # the effective span: never less than the ramp


def test_wandb_ends_with_what_the_run_came_to(launch, tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "WANDB_API_KEY", "")
    monkeypatch.setitem(ENVIRONMENT, "NETRC", str(tmp_path / "netrc"))
    out = launch("run.dir=run", "tracking=wandb", "train.steps=10").stdout
    assert out.startswith("warning: nobody is logged in to Weights & Biases")
    time.sleep(1.1)  # wandb names the folder of each part by the second
    (tmp_path / "run" / "evaluation.json").unlink()  # as if it had been killed while it was scored
    assert "warning" not in launch("run.dir=run", "tracking=offline", "train.steps=10").stdout
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    parts = wandb_records(tmp_path / "run")
    for part in parts:
        kept = {key: value for record in of_type(part, "summary") for key, value in record["update"].items()}
        assert kept["exact/test/bpc"] == scores["splits"]["test"]["bpc"]
        assert kept["flops/maximum_span"] == scores["flops_per_token"]["maximum_span"]
        assert kept["parameters"] == sum(value.numel() for value in newest(tmp_path / "run")["model"].values())
        assert kept["valid/bpc"] == {"min": min(line["valid/bpc"] for line in lines if "valid/bpc" in line)}
        assert kept["tokens_per_second"] == {"max": max(line["tokens_per_second"] for line in lines)}
        assert (kept["spans"]["nrows"], kept["spans"]["ncols"]) == (2, 5)
        assert {"path": "evaluation.json"} in [file for files in of_type(part, "files") for file in files["files"]]
    [first, second] = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert json.loads((first / "files" / "evaluation.json").read_text())["splits"] == scores["splits"]
    assert of_type(parts[1], "history") == []
    upload, again = re.findall(r"^upload +(.*)", out, re.MULTILINE)
    assert upload == again
    assert out.index(upload) < out.index("step 5/")
    assert shlex.split(upload)[:2] == ["wandb", "sync"]
    assert sorted(glob(shlex.split(upload)[2])) == [str(first), str(second)]


def test_a_multirun_gives_each_job_its_own_directory_and_finished_wandb_run(launch, tmp_path):
    launch("hydra.mode=MULTIRUN", "run.dir=sweep", "train.seed=1,2", "train.steps=6", "tracking=offline")
    jobs = [tmp_path / "sweep" / job for job in "01"]
    assert metrics(jobs[0]) != metrics(jobs[1])
    ((first,), (second,)) = (wandb_records(job) for job in jobs)
    assert of_type(first, "run")[0]["run_id"] != of_type(second, "run")[0]["run_id"]
    assert [len(of_type(part, "exit")) for part in (first, second)] == [1, 1]
    named = [of_type(part, "run")[0] for part in (first, second)]
    assert [(run["display_name"], run["run_group"]) for run in named] == [("seed=1", "sweep"), ("seed=2", "sweep")]
