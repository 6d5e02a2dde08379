"""`adaptive-span fit` on a model that was trained on real text: what it promises, and what it does with bad input."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adaptive_span.hf import losses, text
from adaptive_span.hf.spans import load
from adaptive_span.storage import tensor_file
from tests.conftest import ENVIRONMENT, finish, sentence
from tests.unit.data.tokenizer_kinds import TEXT, byte_level
from tests.unit.hf.tiny_models import tiny

CONTEXT = 128
SETTINGS = (
    f"data=stdlib context={CONTEXT} ramp=8 steps=60 budget=0.3 held_out=2000 hardware=cpu hardware.precision=fp32"
).split()


def command(model: Path, *settings: str) -> list[str]:
    return [sys.executable, "-m", "adaptive_span", "fit", f"model={model}", *SETTINGS, *settings]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of 2 layers that learned from the sources of Python for some seconds."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<end>")
    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
        )
    )  # fmt: skip
    ids = text.encode(tokenizer, TEXT.encode(), "text", "train")
    adam = torch.optim.AdamW(llama.parameters(), lr=4e-3)
    for step in range(120):
        starts = torch.randint(len(ids) - CONTEXT, (8,), generator=torch.Generator().manual_seed(step)).tolist()
        batch = torch.stack([ids[at : at + CONTEXT] for at in starts])
        llama(batch, labels=batch).loss.backward()
        adam.step()
        adam.zero_grad()
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_fit_meets_its_budget_and_beats_one_window_and_resumes_after_a_kill(model, tmp_path):
    whole = finish(command(model, "out=whole"), tmp_path)
    fitted = load(tmp_path / "whole" / "spans.json")
    found = fitted.fit
    assert fitted.share() == pytest.approx(0.3, abs=0.02)
    assert found["before"]["loss"]["nats_per_token"] < 5  # it knows something that spans could hide
    assert len({span for layer in fitted.layers for span in layer.spans}) > 4
    after = found["after"]["loss"]["nats_per_token"]
    assert after < found["baselines"]["one_window"]["loss"]["nats_per_token"]
    assert f"{after:.3f}" in whole.stdout
    assert (tmp_path / "whole" / "spans.png").stat().st_size > 10_000

    process = subprocess.Popen(command(model, "out=cut"), cwd=tmp_path, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    state, deadline = tmp_path / "cut" / "fit.pt", time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.exists()
    spent = tensor_file.read(state)["fit"]["seconds"]
    assert not (tmp_path / "cut" / "spans.json").exists()
    assert "resuming at step" in finish(command(model, "out=cut"), tmp_path).stdout
    cut = load(tmp_path / "cut" / "spans.json")
    assert cut.layers == fitted.layers
    assert cut.fit["seconds"] > spent > 0
    assert {key: cut.fit[key] for key in ("before", "after", "baselines", "steps", "penalty")} == {
        key: found[key] for key in ("before", "after", "baselines", "steps", "penalty")
    }
    assert finish(command(model, "out=cut"), tmp_path).stdout.count("nats per token, on") == 1  # it is done

    other = sentence(finish(command(model, "out=cut", "budget=0.4"), tmp_path, ok=False))
    assert "budget=0.3" in other
    assert "budget=0.4" in other


def test_a_sweep_over_prices_ends_where_spans_have_settled_and_is_drawn(model, tmp_path):
    finish(command(model, "-m", "penalty=1,300", "out=fits/${penalty}", "steps=100"), tmp_path)
    cheap, dear = (load(tmp_path / "fits" / price / "spans.json") for price in ("1.0", "300.0"))
    assert dear.share() < cheap.share()
    assert dear.fit["steps"] < 100  # all spans are at 0 and move no more
    assert cheap.fit["penalty"] == 1
    both = [f"fits/{price}/spans.json" for price in ("1.0", "300.0")]
    finish([sys.executable, "-m", "adaptive_span", "figures", *both], tmp_path)
    assert (tmp_path / "fits" / "1.0" / "pareto.png").stat().st_size > 10_000


def test_what_cannot_be_fitted_is_one_sentence(model, tmp_path):
    (tmp_path / "empty").mkdir()
    tiny("mistral", sliding_window=16, vocab_size=600).save_pretrained(sliding := tmp_path / "sliding")
    quantised = tmp_path / "quantised"
    for folder in (sliding, quantised):
        shutil.copytree(model, folder, dirs_exist_ok=True, ignore=lambda *_: ["config.json", "model.safetensors"])
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (quantised / "config.json").write_text(json.dumps(config))
    for settings, words in (
        (["context=4096"], "longer than the 128 tokens"),
        (["data=files", "data.path=short.txt"], "fewer than context=128"),
        ([f"model={tmp_path / 'empty'}"], "neither a config.json nor a GGUF file"),
        (["budget=null"], "needs a penalty"),
        (["steps=0"], "steps=0"),
        ([f"model={sliding}"], "sees no more than a sliding window of 16 tokens"),
        ([f"model={quantised}"], "cannot be loaded"),
    ):
        (tmp_path / "short.txt").write_text("a line\n" * 40)
        assert words in sentence(finish(command(model, *settings), tmp_path, ok=False))


def test_a_loss_is_that_of_transformers(model):
    llama = LlamaForCausalLM.from_pretrained(model).eval()
    tokens = torch.arange(CONTEXT) % 300
    with torch.no_grad():
        expected = llama(tokens[None], labels=tokens[None]).loss.item()
    assert losses.measure(llama, [tokens])["nats_per_token"] == pytest.approx(expected, rel=1e-5)
