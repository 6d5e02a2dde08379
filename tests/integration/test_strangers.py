"""What strangers hand over is data: read, or refused in one sentence; never run, never larger than it is."""

import copy
import gzip
import json
import lzma
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from adaptive_span.checkpoint import files, loading, stored_model
from adaptive_span.config.schema import Config, RunConfig
from adaptive_span.errors import UserError
from adaptive_span.launch.slurm import snapshot
from adaptive_span.reporting.tracking import logged
from adaptive_span.storage import source_code
from adaptive_span.storage.stored import from_dict, read_yaml
from tests import fuzz
from tests.conftest import ENVIRONMENT, ROOT, finish, sentence
from tests.strangers import CONFIG, TINY, state


def changed(path: str, value: object) -> files.State:
    """Return that with another value, or without one."""
    made = copy.deepcopy(state())
    *outer, last = path.split(".")
    part = made
    for key in outer:
        part = part[key]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return made


def load(path: Path) -> None:
    stored_model.model_of(loading.load(path), path, torch.device("cpu"))


def test_a_checkpoint_says_its_format_and_one_without_is_read(tmp_path):
    files.save(state(), tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True)["format"] == files.FORMAT
    torch.save(state(), tmp_path / "old.pt")
    load(tmp_path / "old.pt")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("format", files.FORMAT + 1, "was written by a newer version of adaptive-span (format 2; this one reads"),
        ("format", "x", "has format=x, which is not int"),
        ("config.model.rope", True, "has the key 'model.rope', which this version of adaptive-span does not know"),
        ("config.modle", {}, "has the key 'modle', which this version of adaptive-span does not know; did you mean 'm"),
        ("config.model.num_layers", "x", "has model.num_layers=x, which is not int"),
        ("config.model.num_layers", 10**9, "describes a model with num_layers=1000000000, but holds only"),
        ("config.model.hidden_size", 10**12, "describes a model with hidden_size=1000000000000, but holds only"),
        ("config.model.max_span", 10**12, "describes a model with max_span=1000000000000, but holds only"),
        ("config.model.max_span", 16, "does not fit this model: positions has shape (4, 8) there and (4, 16) here"),
        ("vocab_size", 10**12, "describes a model with vocab_size=1000000000000, but holds only"),
        ("config.model.hidden_size", {"_target_": "os.system"}, "has model.hidden_size={'_target_': 'os.system'}, wh"),
        ("config.model.name", {"_target_": "os.system"}, "has model.name={'_target_': 'os.system'}, which is not str"),
        ("config.sweep", {"x": torch.zeros(3)}, "has sweep={'x': tensor([0., 0., 0.])}, which is not"),
        ("config", None, "lacks the key 'config'"),
        ("step", None, "lacks the key 'step'"),
        ("model", [1], "has model=[1], which is not"),
        ("model.positions", torch.zeros(1).expand(10**12), "holds a tensor of (1000000000000,) that repeats fewer"),
        ("model.positions", torch.eye(3).to_sparse(), "which was refused"),
        ("model.positions", bytearray(3), "which was refused"),
    ],
)
def test_a_checkpoint_that_is_no_checkpoint_is_told(path, value, told, tmp_path):
    torch.save(changed(path, value), tmp_path / "x.pt")
    with pytest.raises(UserError) as refused:
        load(tmp_path / "x.pt")
    assert str(refused.value).startswith(f"{tmp_path / 'x.pt'} ") or "holds a tensor" in str(refused.value)
    assert told in str(refused.value)


def repacked(source: Path, target: Path, pack=lambda name, content: (name, content), compression=0) -> None:
    """Write the members of a zip file again, each as `pack` changes it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(*pack(name, old.read(name)))


def test_a_zip_that_torch_would_not_write_is_refused(tmp_path):
    files.save(state(), tmp_path / "x.pt")
    repacked(tmp_path / "x.pt", tmp_path / "packed.pt", compression=zipfile.ZIP_DEFLATED)
    bomb = pickle.dumps(bytearray, 2).replace(b".", b"") + pickle.dumps((10**11,), 2)[2:-1] + b"R."
    repacked(tmp_path / "x.pt", tmp_path / "bomb.pt", lambda n, c: (n, bomb if n.endswith("data.pkl") else c))
    repacked(tmp_path / "x.pt", tmp_path / "dots.pt", lambda n, c: (f"../../{n}", c))
    for name, told in (("packed", "compressed members"), ("bomb", "which was refused"), ("dots", "is damaged")):
        with pytest.raises(UserError, match=told):
            loading.load(tmp_path / f"{name}.pt")


def test_interpolations_and_aliases_of_a_configuration_are_text_or_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hidden")
    made = replace(CONFIG, run=RunConfig("${oc.env:SECRET}")).as_dict()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(made))
    assert from_dict(read_yaml(tmp_path / "config.yaml"), Config, "x").run.dir == "${oc.env:SECRET}"
    for text in (
        "a: !!python/object/apply:os.mkdir [run]",
        "a: &a [1]\nb: *a",
        "a: &a {a: *a}",
        "[" * 10**5,
        "a: \x1b",
    ):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            read_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "checkpoints/best.pt", "config.yaml"])
def test_a_link_out_of_a_run_is_refused_and_what_it_leads_to_left_alone(name, launch, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine\n")
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(outside if name == "checkpoints" else outside / "file")
    refused = [launch("run.dir=run", ok=False)]
    refused += [finish([sys.executable, str(ROOT / "evaluate.py"), "run=run"], tmp_path, ok=False)]
    assert all(
        sentence(result).startswith(f"run/{name} is a link that leads out of the run's dir") for result in refused
    )
    assert [path.read_text() for path in outside.iterdir()] == ["mine\n"]


def test_nothing_that_is_printed_steers_a_terminal(tmp_path):
    """Names, settings and numbers of a run of a stranger, in a table, a sentence, and on a terminal."""
    name = "[red]x[/red] \x1b[2J\x07\r\u202e:smile:"
    for number in range(2):
        run = tmp_path / f"run {number}"
        run.mkdir()
        config = replace(CONFIG, model=replace(TINY, name=f"{name}{number}")).as_dict()
        (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        (run / "failure.txt").write_text(f"because {name}\n", encoding="utf-8", newline="")
        line = {"step": 1, "tokens_per_second": 2.0, "span/mean": 3.0, "flops_per_token": 4.0, "valid/bpc": 5.0}
        (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    code = "import pty, sys; pty.spawn([sys.executable, '-m', 'adaptive_span', 'sweep', '.'])"
    environment = ENVIRONMENT | {"COLUMNS": "300", "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, env=environment).stdout
    assert b"[red]x[/red] \\x1b[2J\\x07\\r\\u202e:smile:" in shown
    assert not any(raw in shown for raw in (b"\x1b[2J", b"\x07", "\u202e".encode()))
    words = [sys.executable, "-m", "adaptive_span", "export", f"a\x1b[2J{name}\nb", "out"]
    assert not set(sentence(finish(words, tmp_path, ok=False))) & {"\x1b", "\x07", "\r", "\u202e", "\n"}


def test_a_metrics_line_without_a_key_is_told(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"train/bpc": 2.0}\n')
    with pytest.raises(UserError, match=r"line 2 of .*metrics.jsonl lacks the key 'step'"):
        logged(tmp_path / "metrics.jsonl")


def test_secrets_reach_nothing_that_a_run_leaves(launch, tmp_path, monkeypatch):
    secrets = ["5ecretOfWandb0123456789", "5ecretOfUser", "5ecretOfQuery", "5ecretOfSetup"]
    monkeypatch.setitem(ENVIRONMENT, "WANDB_API_KEY", secrets[0])
    urls = f"'https://me:{secrets[1]}@example.org/x.zip','https://example.org/y.zip?token={secrets[2]}&a=1'"
    setup = f"hardware.setup=['export HF_TOKEN={secrets[3]}']"
    done = launch("run.dir=run", f"data.urls=[{urls}]", setup, "tracking=offline", "train.steps=2")
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] + [done.stdout.encode()]
    assert any(b"example.org" in content for content in left)
    assert not [secret for secret in secrets for content in left if secret.encode() in content]


def test_a_snapshot_keeps_no_secret_of_the_tree(tmp_path, monkeypatch):
    monkeypatch.setattr(source_code, "git", lambda directory, *words: b"+url: https://me:5ecret@example.org/x\n")
    snapshot.take(tmp_path)
    assert (tmp_path / "code" / "changes.diff").read_text() == "+url: https://***@example.org/x\n"


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_changed_files_are_read_or_refused_in_a_sentence(name, tmp_path):
    assert fuzz.fuzz(name, 150, seed=1, directory=tmp_path) == []


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zip"])
def test_a_text_that_unpacks_without_end_is_refused(ending, tmp_path):
    content = bytes(64 << 20)
    packed = {".gz": gzip.compress, ".xz": lzma.compress, ".zip": lambda text: fuzz.zipped("text", text)}[ending](
        content
    )
    (tmp_path / f"x{ending}").write_bytes(packed)
    with pytest.raises(UserError, match="unpacks to more than 200 times its size"):
        fuzz.unpack(tmp_path / f"x{ending}")
