"""The exact score does not depend on how it is computed; the published one is the published one."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_span import ModelConfig, Transformer
from adaptive_span.data.corpus import Corpus
from adaptive_span.data.vocabulary import Vocabulary
from adaptive_span.distributed import Process
from adaptive_span.evaluation import scoring, token_losses
from tests.conftest import ROOT, SHARED, finish, sentence

ALONE = Process(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(3)
    config = ModelConfig("test", 3, 12, 16, 3, max_span=200, block_size=8, ramp=4)
    model = Transformer(config, 11).double()
    for layer, spans in zip(
        model.attention_blocks, ([0.0, 0.02, 0.3], [0.01, 0.0, 0.1], [0.05, 0.4, 0.0]), strict=True
    ):
        layer.attention.span.fraction.data = torch.tensor(spans, dtype=torch.float64)
    return model


@torch.no_grad()
def in_one_piece(model: Transformer, tokens: np.ndarray) -> float:
    """Nats of every token but the first, in one long block from an empty cache."""
    text = torch.from_numpy(tokens.astype(np.int64))[None]
    nll, _ = model(text[:, :-1], text[:, 1:], model.empty_cache(1))
    return nll.sum().item()


@settings(max_examples=20)
@given(length=st.integers(2, 1500), rows=st.integers(1, 9), block=st.integers(1, 70), seed=st.integers(0, 99))
def test_an_exact_score_is_that_of_the_text_in_one_piece(model, length, rows, block, seed):
    tokens = np.random.default_rng(seed).integers(11, size=length)
    score = scoring.score_exactly(model, tokens, rows, block, ALONE, "test")
    assert score.tokens == length - 1
    assert score.nats == pytest.approx(in_one_piece(model, tokens), rel=1e-9)


def test_the_losses_of_a_text_are_those_of_its_exact_score(model):
    """Of é the two bytes are one piece; a byte that is no text is an escape."""
    symbols = ["97", "98", "<eos>", "195", "169", "255", "100", "101", "102", "103", "104"]
    ids = np.random.default_rng(0).integers(11, size=3000).astype(np.uint8)
    ids[:6] = [0, 3, 4, 5, 2, 3]
    ids[6] = 0
    corpus = Corpus(Path(), {}, Vocabulary("byte", symbols), {"valid": ids})
    losses = token_losses.measure(model, corpus, 8, 7, ALONE)
    nats = [nat for piece in losses["nats"] for nat in piece]
    assert len(nats) == token_losses.TOKENS
    score = scoring.score_exactly(model, ids[: token_losses.TOKENS + 1], 3, 16, ALONE, "valid")
    assert sum(nats) == pytest.approx(score.nats, abs=1e-4 * len(nats))
    assert losses["texts"][:6] == ["a", "é", "\\xff", "\n", "\\xc3", "a"]
    assert list(map(len, losses["nats"][:5])) == [0, 2, 1, 1, 1]


def test_the_published_protocol_by_hand(model):
    """2 rows of 50 tokens, blocks of 8: ceil(50 / 8) − 1 = 6 of them, cold at the start of each row."""
    tokens = np.random.default_rng(0).integers(11, size=101)
    score = scoring.score_as_published(model, tokens, 2, 8, ALONE, "test")
    assert score.tokens == 2 * 6 * 8
    assert score.nats == pytest.approx(sum(in_one_piece(model, tokens[start : start + 49]) for start in (0, 50)))


CHECKPOINT = SHARED / "checkpoints" / "original_enwik8_4M.pt"


@pytest.mark.skipif(not CHECKPOINT.exists(), reason=f"{CHECKPOINT} is not on this machine")
def test_a_real_checkpoint_of_the_original_scores_what_it_did_there(tmp_path):
    about = json.loads(CHECKPOINT.with_suffix(".json").read_text())["full_evaluation"]
    data = ["data=enwik8", f"data.file={SHARED}/data/enwik8_first_4154399.xz", "data.split=[3600000,200000,200000]"]
    settings = [f"checkpoint={CHECKPOINT}", "protocol=published", "batch_size=8", "block_size=128"]
    words = [sys.executable, str(ROOT / "evaluate.py"), *settings, *data]
    assert "numbering=same if you know that they are" in sentence(finish(words, tmp_path, ok=False))
    finish([*words, "numbering=same"], tmp_path)
    (score,) = json.loads((tmp_path / "evaluation.json").read_text())["others"].values()
    scores = score["splits"]
    for split in ("valid", "test"):
        assert scores[split]["bpc"] == pytest.approx(about[f"{split}_bpc"], abs=2e-5)


def test_evaluate_scores_a_run_whatever_the_rows_blocks_and_processes(launch, tmp_path):
    launch("run.dir=run", "model.span_init=0.3")
    run = tmp_path / "run"
    trained = json.loads((run / "evaluation.json").read_text())
    bpc = []
    for settings_ in (["batch_size=1"], ["batch_size=8", "block_size=5"], ["hardware.processes=2"]):
        words = [sys.executable, str(ROOT / "evaluate.py"), "run=run", *settings_]
        out = finish(words, tmp_path).stdout
        scores = json.loads((run / "evaluation.json").read_text())
        assert f"{scores['splits']['valid']['bpc']:.4f}" in out
        bpc += [scores["splits"][split]["bpc"] - trained["splits"][split]["bpc"] for split in ("valid", "test")]
        assert scores["spans"] == trained["spans"]
    assert bpc == pytest.approx([0] * 6, abs=1e-5)
    assert trained["splits"]["test"]["bpc"] == pytest.approx(
        trained["splits"]["test"]["nats"] / trained["splits"]["test"]["tokens"] / math.log(2)
    )
    state = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    spans = [state["model"][f"attention_blocks.{layer}.attention.span.fraction"] * 96 + 32 for layer in range(2)]
    torch.testing.assert_close(torch.tensor(trained["spans"]), torch.stack(spans).clamp(max=96))


def test_a_published_number_stands_beside_ours_and_words_are_scored_in_perplexity(launch, tmp_path):
    launch("run.dir=run", "data.level=word", "train.steps=3", "+published.valid=12.25", "hardware.precision=bf16")
    words = [sys.executable, str(ROOT / "evaluate.py"), "checkpoint=run/checkpoints/best.pt", "protocol=published"]
    out = finish([*words, "batch_size=2"], tmp_path).stdout
    assert "published evaluation" in out
    assert "12.25" in out
    ((name, score),) = json.loads((tmp_path / "evaluation.json").read_text())["others"].items()
    assert name.endswith(", published")
    valid = score["splits"]["valid"]
    assert valid["ppl"] == pytest.approx(math.exp(valid["nats"] / valid["tokens"]))


def test_a_damaged_or_foreign_checkpoint_is_refused(launch, tmp_path):
    launch("run.dir=run", "train.steps=2")
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    (tmp_path / "cut.pt").write_bytes(best.read_bytes()[:5000])
    words = [sys.executable, str(ROOT / "evaluate.py")]
    assert "the checkpoint cut.pt is damaged" in sentence(finish([*words, "checkpoint=cut.pt"], tmp_path, ok=False))
    state = torch.load(best, weights_only=True)
    torch.save(state | {"corpus": "another"}, tmp_path / "foreign.pt")
    assert "was trained on other data" in sentence(finish([*words, "checkpoint=foreign.pt"], tmp_path, ok=False))
