"""Checkpoints of the original project are read whole, or refused with the name of what does not fit."""

import os
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from adaptive_span.checkpoint import loading, original
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.errors import UserError
from adaptive_span.model.transformer import Transformer
from adaptive_span.storage import tensor_file
from adaptive_span.storage.stored import from_dict
from tests.conftest import ROOT, SHARED, finish, sentence
from tests.parity import block

VECTORS = sorted((ROOT / "tests" / "vectors").glob("*.pt"))
REAL = SHARED / "checkpoints" / "original_enwik8_4M.pt"


def as_the_original_saves(vectors: dict, **changes: object) -> dict:
    """What the original code would have saved: each optimizer state is told by its parameter's values."""
    own = {name: tensor for name, tensor in vectors["state_dict"].items() if name in vectors["grads"]}
    state = {index: {"step": torch.tensor(7.0), "sum": tensor.abs()} for index, tensor in enumerate(own.values())}
    return {
        "iter_no": 0,
        "model": vectors["state_dict"],
        "logger": {"train_bpc": [3.0]},
        "optimizer": {"state": state, "param_groups": [{"params": list(range(len(own)))}]},
        "scheduler_iter": 7,
    } | changes


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_of_every_variant_is_recognised(path, zipped, tmp_path):
    vectors = torch.load(path, weights_only=True)
    c = vectors["config"]
    torch.save(as_the_original_saves(vectors), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    state = original.convert(tensor_file.read(tmp_path / "x.pt"), tmp_path / "x.pt", ramp=c["ramp"])
    assert state["step"] == 7
    config = from_dict(state["config"]["model"], ModelConfig, path)
    words = c["adaptive_io"] or {"cutoffs": [], "div": 4, "tied": True}
    assert (config.num_layers, config.num_heads, config.max_span) == (c["layers"], c["heads"], c["max_span"])
    assert (config.adaptive_span, config.memory_size) == (c["adaptive"], c["persistent"])
    assert (config.cutoffs, config.division, config.tied) == tuple(words[key] for key in ("cutoffs", "div", "tied"))
    model = Transformer(config, state["vocab_size"])
    model.load_state_dict(state["model"])
    with torch.no_grad():
        nll, _ = model(*block(c, vectors["tokens"], 0), model.empty_cache(c["batch"]))
    torch.testing.assert_close(nll, vectors["eval_nll"][0], atol=1e-5, rtol=0)
    for index, parameter in enumerate(model.parameters()):
        torch.testing.assert_close(state["optimizer"]["state"][index]["sum"], parameter.detach().abs())


def test_what_does_not_fit_is_named(tmp_path):
    vectors = torch.load(VECTORS[0], weights_only=True)
    wrong = {
        "module.layers.1.norm1.extra": lambda t: t | {"module.layers.1.norm1.extra": torch.zeros(3)},
        "positions": lambda t: {name: x for name, x in t.items() if name != "module.key_pe"},
        "attention_blocks.1.norm.bias has shape missing there": lambda t: {
            name: x for name, x in t.items() if name != "module.layers.1.norm1.bias"
        },
        "output.weight has shape (9, 9) there": lambda t: t | {"module.out_emb.weight": torch.zeros(9, 9)},
    }
    for told, change in wrong.items():
        torch.save(as_the_original_saves(vectors, model=change(vectors["state_dict"])), tmp_path / "x.pt")
        with pytest.raises(UserError) as refused:
            loading.load(tmp_path / "x.pt")
        assert told.replace("module.layers.1.norm1.", "attention_blocks.1.norm.") in str(refused.value)
    state = as_the_original_saves(vectors)
    state["optimizer"]["state"].pop(3)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UserError, match="the optimizer's state of"):
        loading.load(tmp_path / "x.pt")


class Attack:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_nothing_run(zipped, tmp_path):
    state = {"model": Attack(tmp_path / "run"), "optimizer": {}, "iter_no": 0, "scheduler_iter": 0}
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    words = [sys.executable, str(ROOT / "evaluate.py"), "checkpoint=x.pt", "data=stdlib"]
    assert sentence(finish(words, tmp_path, ok=False)).startswith("x.pt asks to run code when it is loaded")
    assert not (tmp_path / "run").exists()


def test_conversion_and_evaluation_from_the_command_line(tmp_path):
    vectors = torch.load(VECTORS[0], weights_only=True)
    torch.save(as_the_original_saves(vectors), tmp_path / "x.pt")
    convert = [sys.executable, "-m", "adaptive_span", "published", "x.pt", "ours.pt"]
    assert "step 7, vocabulary 40" in finish(convert, tmp_path).stdout
    ours, theirs = loading.load(tmp_path / "ours.pt"), loading.load(tmp_path / "x.pt")
    assert ours["config"] == theirs["config"]
    for part in ("model", "optimizer"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)
    again = subprocess.run([*convert[:4], "ours.pt", "x2.pt"], cwd=tmp_path, capture_output=True, text=True)
    assert "ours.pt is a checkpoint of this project already" in again.stderr
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(" ".join(map(str, range(38))) + "\n" * 300)
    for name in ("x.pt", "ours.pt"):
        words = [sys.executable, str(ROOT / "evaluate.py"), f"checkpoint={name}"]
        assert "give data=NAME" in sentence(finish(words, tmp_path, ok=False))
        words += ["data=files", "data.path=.", "block_size=8"]
        told = sentence(finish(words, tmp_path, ok=False))
        assert told.startswith(f"{name} has a vocabulary of 40 tokens, but data=files")
        assert "numbers 256" in told
        assert (
            "exact evaluation"
            in finish([*words, "data.level=word", "numbering=same", f"output={name}.d"], tmp_path).stdout
        )
    scores = [(tmp_path / f"{name}.d" / "evaluation.json").read_text() for name in ("x.pt", "ours.pt")]
    assert "bpc" in scores[0]
    assert scores[0].split("tokens_per_second")[0] == scores[1].split("tokens_per_second")[0]


@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is not on this machine")
def test_a_training_goes_on_from_a_real_one(tmp_path):
    """Warmed up, with its Adagrad sums: from the loss that it had, as no training with other sums does."""
    data = f"data=enwik8 data.file={SHARED}/data/enwik8_first_4154399.xz data.split=[3600000,200000,200000]"
    settings = "train.steps=2010 train.warmup_steps=200 train.batch_size=16 validation.blocks=1 log.every=2 "
    settings += "model.max_span=1024 model.block_size=128 tracking=none hardware=cpu run.dir=run"
    settings += " numbering=same"
    words = [sys.executable, str(ROOT / "launch.py"), *data.split(), *settings.split()]
    out = finish([*words, f"train.continue_from={REAL}"], tmp_path).stdout
    lines = [line for line in out.splitlines() if line.startswith("step 20")]
    assert lines[0].startswith("step 2002/2010")
    assert all(float(line.split("train bpc ")[1].split()[0]) < 2.7 for line in lines)
    theirs = loading.load(REAL)
    ours = loading.load(tmp_path / "run" / "checkpoints" / "step_00002010.pt")
    sums = [(state["optimizer"]["state"][5]["sum"]) for state in (theirs, ours)]
    assert (sums[1] >= sums[0]).all()
    assert (sums[1] / sums[0].clamp(min=1e-12)).median() < 1.1
    refused = finish([*words, f"train.continue_from={REAL}", "train.steps=100", "run.dir=other"], tmp_path, ok=False)
    assert "has 2000 steps behind it, and this training ends after 100" in sentence(refused)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_published_file_is_fetched_with_resume(tmp_path, monkeypatch):
    torch.save(as_the_original_saves(torch.load(VECTORS[0], weights_only=True)), tmp_path / "enwik8.pt")
    whole = (tmp_path / "enwik8.pt").read_bytes()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(whole) - start))
            self.end_headers()
            self.wfile.write(whole[start:])

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(original, "ADDRESS", f"http://127.0.0.1:{server.server_port}/{{name}}.pt")
        there = tmp_path / "there"
        there.mkdir()
        (there / "enwik8.pt.part").write_bytes(whole[:1000])
        assert original.download("enwik8", there).read_bytes() == whole
        server.shutdown()
        thread.join()
    assert [path.name for path in there.iterdir()] == ["enwik8.pt"]
    with pytest.raises(UserError, match="only enwik8, enwik8_large, text8, text8_large; did you mean 'enwik8'"):
        original.download("enwik", there)
