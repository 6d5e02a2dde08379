"""A tokenizer.json trains, is scored in nats per token and bits per byte, and writes text, each without its file."""

import json
import math
import re

import numpy as np
import pytest
import torch

from adaptive_span.checkpoint import files
from adaptive_span.checkpoint.stored_model import model_of
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.evaluate_schema import EvaluateConfig
from adaptive_span.config.generate_schema import GenerateConfig
from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.evaluation.evaluate import evaluate
from adaptive_span.generation.generate import generate
from adaptive_span.reporting import run_record, scores
from adaptive_span.reporting.page import chosen
from adaptive_span.reporting.page.build import page
from tests.conftest import metrics, sentence
from tests.unit.data.tokenizer_kinds import TEXT, saved, vocabulary

CPU = HardwareConfig(device="cpu")


def test_a_tokenizer_trains_scores_and_writes(launch, tmp_path, capsys):
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(saved("byte_level"), encoding="utf-8")
    asked = ["data.path=book.txt", "data.level=subword", "data.tokenizer=tokenizer.json", "run.dir=run"]
    out = launch(*asked, "train.steps=12").stdout
    run = tmp_path / "run"

    # By hand, in float64: all tokens but the first, and the bytes of all of them.
    state = files.load(run / "checkpoints" / "best.pt")
    model = model_of(state, run / "checkpoints" / "best.pt", torch.device("cpu")).eval()
    ids = np.concatenate([np.fromfile(path, "<u2") for path in tmp_path.glob("data/*/valid.bin")]).astype(np.int64)
    text = vocabulary("byte_level").decode(ids.tolist()).encode()
    assert text in TEXT.encode()
    tokens = torch.from_numpy(ids)[None]
    with torch.inference_mode():
        nll, _ = model(tokens[:, :-1], tokens[:, 1:], model.empty_cache(1))
    nats = float(nll.double().sum())
    score = scores.exact_score(run)["splits"]["valid"]
    assert score["nats"] == pytest.approx(nats, rel=1e-5)
    assert score["nats_per_token"] == pytest.approx(nats / (len(ids) - 1), rel=1e-5)
    assert score["bits_per_byte"] == pytest.approx(nats / (len(ids) - 1) * len(ids) / len(text) / math.log(2), rel=1e-5)
    last = metrics(run)[-1]
    for split in ("train", "valid"):
        assert last[f"{split}/bits_per_byte"] < last[f"{split}/nats_per_token"]
    assert re.search(r"valid +\d\.\d{4} +\d\.\d{4}\n", out)
    assert run_record.read(run).score("valid") == score["bits_per_byte"]
    html = page(chosen.read([run]))
    assert "Bits per byte (bits/byte) by step" in html
    assert f"{score['bits_per_byte']:.4f} bits/byte" in html
    pieces = json.loads((run / "token_losses.json").read_text())
    assert "".join(pieces["texts"]) == text.decode()
    assert sum(map(len, pieces["nats"])) == len(ids) - 1

    (tmp_path / "tokenizer.json").unlink()  # the checkpoint holds it
    (tmp_path / "other.txt").write_text(TEXT[::-1], encoding="utf-8")
    places = {"directory": str(tmp_path / "data"), "level": "subword"}
    for data in (DataConfig("", directory=places["directory"], path=str(tmp_path / "book.txt")),
                 DataConfig("files", path=str(tmp_path / "other.txt"), **places)):  # fmt: skip
        evaluate(EvaluateConfig(run=str(run), data=data, hardware=CPU))
    kept = scores.read(run)
    assert kept["splits"]["valid"]["bits_per_byte"] == pytest.approx(score["bits_per_byte"], rel=1e-6)
    assert kept["others"][str(tmp_path / "other.txt")]["splits"]["valid"]["bits_per_byte"] > score["bits_per_byte"]
    capsys.readouterr()
    generate(GenerateConfig(run=str(run), prompt="def 日本", length=30, hardware=CPU))
    assert capsys.readouterr().out.startswith("def 日本")

    (tmp_path / "tokenizer.json").write_text(saved("unigram"), encoding="utf-8")
    again = [*asked[:3], "run.dir=second", "train.init_from=run/checkpoints/best.pt", "train.steps=2"]
    assert sentence(launch(*again, ok=False)).startswith("run/checkpoints/best.pt reads by another tokenizer than data")
