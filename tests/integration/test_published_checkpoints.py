"""A checkpoint of the original project's form is scored, and trained on, to the numbers that the original computed."""

import json
import math
import sys

import pytest
import torch

from adaptive_span.checkpoint import loading
from adaptive_span.cli import evaluate, export, figures, generate
from adaptive_span.cli import published as convert
from tests.conftest import ROOT, finish, sentence
from tests.unit.checkpoint.test_published import VECTORS, as_the_original_saves

BATCH, BLOCK = 4, 24  # of the vectors


@pytest.fixture
def published(tmp_path):
    """A checkpoint of step 7 and its vectors, whose tokens are made a text: valid and test are what was scored, train
    what was trained on. Returns the vectors, and the words that name both."""
    vectors = torch.load(VECTORS[0], weights_only=True)
    tokens, blocks = vectors["tokens"], vectors["config"]["eval_blocks"]
    scored, trained = tokens[:, : blocks * BLOCK + 1].flatten().tolist(), tokens[:, blocks * BLOCK :].flatten().tolist()
    order = list(dict.fromkeys(trained))  # in which train's symbols are numbered
    assert set(scored) <= set(order)
    assert len(order) == vectors["config"]["vocab"]
    for name, weights in vectors["state_dict"].items():
        if "emb" in name:
            vectors["state_dict"][name] = weights[order]
    symbols = dict(zip(order, "\n" + "".join(map(chr, range(48, 48 + len(order)))), strict=False))
    parts = ["".join(symbols[token] for token in part) for part in (trained, scored, scored)]
    (tmp_path / "text").write_text("".join(parts))
    torch.save(as_the_original_saves(vectors), tmp_path / "x.pt")
    split = str([len(part) for part in parts]).replace(" ", "")
    data = ["data=enwik8", "data.file=text", f"data.split={split}", "data.directory=data", "numbering=same"]
    return vectors, [*data, "hardware=cpu"]


def test_it_scores_what_it_did_there(published, tmp_path):
    """The ramp, which is not in the file, is said when it is converted."""
    vectors, data = published
    convert.main([str(tmp_path / "x.pt"), str(tmp_path / "ours.pt"), "--ramp", str(vectors["config"]["ramp"])])
    settings = ["checkpoint=ours.pt", "protocol=published", f"batch_size={BATCH}", f"block_size={BLOCK}"]
    finish([sys.executable, str(ROOT / "evaluate.py"), *settings, *data], tmp_path)
    [score] = json.loads((tmp_path / "evaluation.json").read_text())["others"].values()
    for split in ("valid", "test"):
        assert score["splits"][split]["bpc"] == pytest.approx(vectors["eval_nll"].mean().item() / math.log(2), abs=1e-5)


def test_a_training_resumes_from_it(published, tmp_path):
    """From the loss that the original had, warmed up, and with the sums of Adagrad's that the file holds."""
    vectors, data = published
    c = vectors["config"]
    model = (
        f"num_layers={c['layers']} hidden_size={c['hidden']} ffn_size={c['inner']} num_heads={c['heads']} "
        f"max_span={c['max_span']} ramp={c['ramp']} block_size={BLOCK} dropout=0"
    )
    words = [sys.executable, str(ROOT / "launch.py"), *data, *(f"model.{word}" for word in model.split())]
    words += (
        f"optimizer.clip={c['grad_clip']} optimizer.lr={c['lr']} train.warmup_steps=4 train.batch_size={BATCH}".split()
    )
    words += f"train.span_penalty={c['span_loss']} validation.blocks=1 log.every=1 tracking=none".split()
    words += ["train.continue_from=x.pt"]
    finish([*words, "train.steps=9", "run.dir=run"], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [8, 9]
    assert [line["lr"] for line in lines] == [c["lr"]] * 2
    assert lines[0]["train/bpc"] == pytest.approx(vectors["train_nll"][0].item() / math.log(2), abs=1e-5)
    before = loading.load(tmp_path / "x.pt")["optimizer"]["state"]
    after = loading.load(tmp_path / "run" / "checkpoints" / "step_00000009.pt")["optimizer"]["state"]
    for index, own in after.items():
        assert (own["sum"] >= before[index]["sum"]).all()
        assert not torch.equal(own["sum"], before[index]["sum"])
    refused = finish([*words, "train.steps=5", "run.dir=other"], tmp_path, ok=False)
    assert "has 7 steps behind it, and this training ends after 5" in sentence(refused)


def test_it_is_exported_and_scores_what_it_did_there_and_writes(published, tmp_path, monkeypatch, capfd):
    vectors, data = published
    monkeypatch.chdir(tmp_path)
    convert.main(["x.pt", "ours.pt", "--ramp", str(vectors["config"]["ramp"])])
    export.main(["ours.pt", "out", *data])
    settings = ["protocol=published", f"batch_size={BATCH}", f"block_size={BLOCK}"]
    evaluate.main(["checkpoint=out", *settings, *data, "output=scored"])
    [score] = json.loads((tmp_path / "scored" / "evaluation.json").read_text())["others"].values()
    assert score["splits"]["valid"]["bpc"] == pytest.approx(vectors["eval_nll"].mean().item() / math.log(2), abs=1e-5)
    written = {}
    for source in ("checkpoint=ours.pt", "checkpoint=out"):
        capfd.readouterr()
        generate.main([source, "prompt=01", "length=20", *(data if source == "checkpoint=ours.pt" else data[-1:])])
        written[source] = capfd.readouterr().out
    assert written["checkpoint=out"] == written["checkpoint=ours.pt"]
    figures.main(["x.pt", "out"])
    assert (tmp_path / "x-spans.png").exists()
    assert (tmp_path / "out-spans.png").exists()
