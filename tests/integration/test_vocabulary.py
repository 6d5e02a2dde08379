"""Weights read a text under the names that they were trained with, or not at all."""

import json
import lzma
import random
import shutil
import string
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adaptive_span import load_model
from adaptive_span.checkpoint import files
from adaptive_span.checkpoint.matching import corpus_for
from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.evaluate_schema import EvaluateConfig
from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.data.corpus import prepare
from adaptive_span.data.vocabulary import Vocabulary, unpack
from adaptive_span.errors import UserError
from adaptive_span.evaluation.evaluate import evaluate
from adaptive_span.evaluation.scoring import Score
from adaptive_span.reporting import scores
from adaptive_span.storage import strict_json
from tests.conftest import ROOT, SHARED, SMALL, finish, sentence
from tests.unit.data.test_corpus import write
from tests.unit.data.test_corpus_cache import published

EVALUATE = [sys.executable, str(ROOT / "evaluate.py")]
REAL = SHARED / "data" / "text8_first_3010294.xz"
SIZES = [60_000, 5_000, 5_000]


def made(seed: int) -> bytes:
    """A text of one vocabulary of words, whose letters appear in an order of their own."""
    words = ["".join(random.Random(number).choices(string.ascii_lowercase, k=5)) for number in range(60)]
    own = random.Random(seed)
    return " ".join(own.choices(words, k=sum(SIZES))).encode()[: sum(SIZES)]


def piece(start: int) -> bytes:
    with lzma.open(REAL) as file:
        file.seek(start)
        return file.read(sum(SIZES))


TEXTS = {"made": lambda: (made(1), made(2)), "text8": lambda: (piece(0), piece(1_500_000))}


def trained(texts: tuple[bytes, bytes], directory: Path, steps: int) -> list[str]:
    """Train in `run` on the first text, and return the words of the command without the file and the run directory."""
    for name, text in zip(("one", "two"), texts, strict=True):
        (directory / name).write_bytes(text)
    (directory / "reversed").write_bytes(texts[1][: SIZES[0]][::-1] + texts[1][SIZES[0] :])
    data = ["data=text8", f"data.split={SIZES}".replace(" ", ""), "data.directory=data"]
    settings = [*SMALL, f"train.steps={steps}", "optimizer.lr=0.1", "validation.every=100"]
    words = [sys.executable, str(ROOT / "launch.py"), *data, *settings]
    finish([*words, "data.file=one", "run.dir=run"], directory)
    return words


@pytest.mark.parametrize("kind", TEXTS)
def test_another_text_is_numbered_by_the_weights(kind, tmp_path):
    """Also if its symbols appear in another order, which changes nothing of its score."""
    if kind == "text8" and not REAL.exists():
        pytest.skip(f"{REAL} is not on this machine")
    trained(TEXTS[kind](), tmp_path, steps=200)
    run = tmp_path / "run"
    own = scores.exact_score(run)
    for name in ("two", "reversed"):
        data = published("text8", file=str(tmp_path / name), split=SIZES, directory=str(tmp_path / "data"))
        evaluate(EvaluateConfig(run=str(run), data=data, hardware=HardwareConfig(device="cpu")))
    after = scores.read(run)
    two, backwards = after.pop("others").values()
    assert after == own
    for split in ("valid", "test"):
        assert two["splits"][split]["bpc"] == backwards["splits"][split]["bpc"]
        assert two["splits"][split]["bpc"] == pytest.approx(own["splits"][split]["bpc"], abs=0.3)


def test_a_run_keeps_the_numbering_of_the_weights_that_it_began_with(tmp_path):
    """Also once they are gone."""
    words = trained(TEXTS["made"](), tmp_path, steps=2)
    first, weights = tmp_path / "run" / "checkpoints" / "best.pt", tmp_path / "weights.pt"
    shutil.copy(first, weights)
    words += ["data.file=two", "train.init_from=weights.pt", "run.dir=second"]
    finish([*words, "train.steps=4"], tmp_path)
    weights.unlink()
    second = tmp_path / "second"
    score = scores.exact_score(second)
    scores.write_other(score | {"corpus": "two"}, "two", second)
    scores.forget(second)
    assert scores.read(second)["others"].keys() == {"two"}
    out = finish([*words, "train.steps=4"], tmp_path).stdout  # scored on another text alone, it is not finished
    assert scores.exact_score(second)["splits"] == score["splits"]
    assert "scoring valid" in out
    assert "resuming second after step 4" in finish([*words, "train.steps=6"], tmp_path).stdout
    vocabularies = [files.load(path)["vocabulary"] for path in (first, second / "checkpoints" / "step_00000006.pt")]
    assert vocabularies[0] == vocabularies[1]


def test_a_byte_model_scores_any_bytes_under_their_own_name(launch, text, tmp_path):
    launch("run.dir=run", "train.steps=2")
    before = scores.exact_score(tmp_path / "run")
    (tmp_path / "other").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / "other" / f"{split}.txt").write_bytes(bytes(range(256)) * 4)
    out = finish([*EVALUATE, "run=run", "data=files", "data.path=other", "data.directory=data"], tmp_path).stdout
    assert "exact evaluation of data=files data.path=other" in out
    finish([*EVALUATE, "run=run", "protocol=published", "batch_size=2"], tmp_path)
    after = scores.read(tmp_path / "run")
    assert after.pop("others").keys() == {"other", f"{text}, published"}
    assert after == before
    refused = finish([*EVALUATE, "run=run", "data=files", "data.path=other", "data.level=word"], tmp_path, ok=False)
    assert "reads bytes, but data.level=word; give data.level=byte" in sentence(refused)


def state(vocabulary: Vocabulary | None, corpus: str | None = None, size: int = 0) -> files.State:
    packed = {"vocabulary": vocabulary.pack()} if vocabulary else {}
    return {"vocab_size": len(vocabulary.symbols) if vocabulary else size, "corpus": corpus} | packed


def test_symbols_that_the_weights_lack_are_named(tmp_path):
    config = write(tmp_path, "abc A", "ab", "ba 7")
    letters = Vocabulary("byte", ["c", "b", "a", "_", "<eos>"])
    with pytest.raises(UserError) as refused:
        corpus_for(state(letters), "x.pt", config, False, None)
    assert "holds 2 byte(s) that the vocabulary of x.pt (5 bytes) lacks: 55 (b'7'), 65 (b'A'); give" in str(
        refused.value
    )
    config = write(tmp_path, "abc a", "ab\n", "ba")
    corpus = corpus_for(state(letters), "x.pt", config, False, None)
    assert corpus.tokens("train").tolist() == [2, 1, 0, 3, 2]
    assert corpus.tokens("valid").tolist() == [2, 1, 4]
    assert corpus_for(state(letters), "x.pt", config, False, None).directory == corpus.directory
    assert prepare(config).fingerprint != corpus.fingerprint


def test_words_that_the_weights_lack_are_unknown_or_named(tmp_path):
    config = write(tmp_path, "b a new\n", "a b\n", "newer")
    config.level = "word"
    known = Vocabulary("word", ["<eos>", "a", "<unk>", "b"])
    corpus = corpus_for(state(known), "x.pt", config, True, None)
    assert [corpus.tokens(split).tolist() for split in ("train", "test")] == [[3, 1, 2, 0], [2, 0]]
    assert corpus.warnings(config) == [f"2 different words of data=files data.path={tmp_path} count as <unk>"]
    with pytest.raises(
        UserError, match=r"holds 2 word\(s\) that the vocabulary of x.pt .* lacks: 'new', 'newer'; give"
    ):
        corpus_for(state(Vocabulary("word", ["<eos>", "a", "b"])), "x.pt", config, False, None)
    own = prepare(config)
    again = corpus_for(state(own.numbering), "x.pt", config, False, None)
    assert again.directory == own.directory


def test_a_checkpoint_without_its_vocabulary_needs_a_proof(tmp_path):
    config = write(tmp_path, "abc", "ab", "ba")
    own = prepare(config)
    for old in (state(None, own.fingerprint, 256), state(None, None, 256) | {"numbering": "same"}):
        assert corpus_for(old, "x.pt", config, False, old.get("numbering")).fingerprint == own.fingerprint
    with pytest.raises(UserError, match=r"nothing proves .* numbering=same if you know that they are"):
        corpus_for(state(None, "another", 256), "x.pt", config, False, None)
    with pytest.raises(UserError, match="has a vocabulary of 40 tokens"):
        corpus_for(state(None, None, 40), "x.pt", config, False, "same")
    text = b"<a>b</a>\n" * 100
    (tmp_path / "whole").write_bytes(text)
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        archive.write(tmp_path / "whole", "whole")
    whole = {
        "sha256": 64 * "0",
        "unpacked_size": 900,
        "unpacked_sha256": __import__("hashlib").sha256(text).hexdigest(),
    }
    for name in ("whole", "whole.zip"):
        config = DataConfig(
            "enwik8",
            file=str(tmp_path / name),
            split=[700, 100, 100],
            directory=config.directory,
            **whole,
            ids="appearance",
            line_ends="eos",
        )
        assert corpus_for(state(None, None, 6), "x.pt", config, False, None).warnings(config) == []
    (tmp_path / "whole").write_bytes(text.replace(b"b", b"c", 1))
    config.file = str(tmp_path / "whole")
    with pytest.raises(UserError, match="has a vocabulary of 6"):
        corpus_for(state(None, None, 6), "x.pt", config, False, None)
    (warning,) = prepare(config).warnings(config)
    assert "is not the published enwik8, but a modified copy" in warning


def test_a_large_vocabulary_is_packed_and_a_damaged_one_refused(tmp_path):
    words = Vocabulary("word", ["<eos>", *(f"word{number}é" for number in range(268_000))])
    torch.save({"vocabulary": words.pack()}, tmp_path / "x.pt")
    packed = torch.load(tmp_path / "x.pt", weights_only=True)["vocabulary"]
    assert unpack(packed, len(words.symbols), "x.pt") == words
    for wrong in (None, 3, {}, {"level": "word"}, {"level": 1, "symbols": "a\nb"}, {"level": "word", "symbols": 2},
                  {"level": "byte", "symbols": "300\n1"}, {"level": "byte", "symbols": "10\n<eos>"},
                  {"level": "byte", "symbols": "ab\nc"}, {"level": "word", "symbols": "a\na"}):  # fmt: skip
        with pytest.raises(UserError, match="is damaged: its vocabulary is not one of 2 different symbols"):
            unpack(wrong, 2, "x.pt")


def test_weights_that_are_no_numbers_are_named_and_no_score_is_written(launch: Callable, tmp_path: Path):
    launch("run.dir=run", "train.steps=2")
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    broken = files.load(best)
    (tmp_path / "run" / "evaluation.json").unlink()
    broken["model"]["attention_blocks.1.norm.bias"][3] = float("nan")
    files.save(broken, best)
    told = "run/checkpoints/best.pt holds weights that are no numbers: attention_blocks.1.norm.bias is not finite"
    assert sentence(finish([*EVALUATE, "run=run"], tmp_path, ok=False)).startswith(told)
    assert sentence(launch("run.dir=run", "train.steps=2", ok=False)).startswith(told)
    assert not (tmp_path / "run" / "evaluation.json").exists()
    with pytest.raises(UserError, match="is not finite"):
        load_model(best)


def test_json_is_strict_and_a_hopeless_model_has_a_perplexity(tmp_path):
    strict_json.write({"ppl": Score(1e9, 10).perplexity}, tmp_path / "x.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        strict_json.write({"ppl": float("nan")}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text())["ppl"] > 1e300
