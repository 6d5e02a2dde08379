"""What was trained goes on elsewhere: an exported folder in every command, and in transformers without this package."""

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from adaptive_span import load_model
from adaptive_span.cli import evaluate, export, figures, generate
from adaptive_span.errors import UserError
from adaptive_span.model.sampling import Sampling
from tests.conftest import ENVIRONMENT, ROOT, SHARED, SMALL, finish

REAL = SHARED / "checkpoints" / "original_enwik8_4M.pt"
TEXT = SHARED / "data" / "enwik8_first_4154399.xz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text) -> Path:
    """A run, and the folder that it was exported to."""
    folder = tmp_path_factory.mktemp("export")
    data = ["data=files", f"data.path={text}", f"data.directory={folder / 'data'}"]
    finish([sys.executable, str(ROOT / "launch.py"), *data, *SMALL, "run.dir=run"], folder)
    export.main([str(folder / "run"), str(folder / "out")])
    return folder


def splits(directory: Path) -> list[dict]:
    """The scores that are kept in a directory."""
    scores = json.loads((directory / "evaluation.json").read_text())
    return [each["splits"] for each in (scores, *scores.get("others", {}).values()) if "splits" in each]


def test_every_command_takes_the_folder_in_place_of_a_checkpoint(folder, text, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    data = [f"data.path={text}", f"data.directory={folder / 'data'}", "hardware=cpu"]
    with pytest.raises(SystemExit):
        evaluate.main(["checkpoint=out", "hardware=cpu"])
    assert "error: data=files needs data.path=DIR" in capfd.readouterr().err
    evaluate.main(["checkpoint=out", *data, "output=scored"])
    assert splits(folder / "scored") == splits(folder / "run") == splits(folder / "out")
    figures.main(["out", "run/checkpoints/best.pt"])
    assert (folder / "out-spans.png").stat().st_size > 5000
    written = {}
    for source in ("run=run", "checkpoint=out"):
        capfd.readouterr()
        generate.main([source, "prompt=import ", "length=20", "hardware=cpu"])
        written[source] = capfd.readouterr().out
    assert written["checkpoint=out"] == written["run=run"]
    assert written["run=run"].startswith("import ")
    export.main(["out", "again"])
    assert (folder / "again" / "model.safetensors").read_bytes() == (folder / "out" / "model.safetensors").read_bytes()
    begun = ["data=files", *data, *SMALL, "train.init_from=out", "train.steps=1", "run.dir=next", "optimizer.lr=1e-30"]
    finish([sys.executable, str(ROOT / "launch.py"), *begun], folder)
    first, second = (load_model(folder / name / "checkpoints" / "best.pt")[0] for name in ("run", "next"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_nothing_that_is_published_names_a_place_on_this_machine(folder, text):
    for path in (folder / "out").iterdir():
        assert str(folder).encode() not in path.read_bytes()
        assert str(text).encode() not in path.read_bytes()
    card = (folder / "out" / "README.md").read_text()
    [scored] = splits(folder / "run")
    assert f"| {scored['valid']['bpc']:.3f} | {scored['test']['bpc']:.3f} |" in card


STRANGER = """
import sys
sys.modules["adaptive_span"] = None  # which a stranger does not have
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
tokenizer = AutoTokenizer.from_pretrained("out", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True)
tokens = tokenizer("import os, sys\\n", return_tensors="pt")["input_ids"]
write = pipeline("text-generation", model=model, tokenizer=tokenizer)
settings = {"max_new_tokens": 30, "do_sample": False, "return_full_text": False}
texts = [each[0]["generated_text"] for each in write(["import ", "def f(x):\\n"], batch_size=2, **settings)]
torch.save({"tokens": tokens, "logits": model(tokens).logits.detach(), "texts": texts}, "stranger.pt")
"""


def test_a_stranger_loads_it_and_lets_it_write(folder):
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", STRANGER]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    theirs = torch.load(folder / "stranger.pt", weights_only=True)
    model, vocabulary = load_model(folder / "out")
    assert theirs["tokens"][0].tolist() == vocabulary.encode(b"import os, sys\n", "text")
    with torch.no_grad():
        ours, _ = model.log_probabilities(theirs["tokens"], model.empty_inference_cache())
    torch.testing.assert_close(theirs["logits"].log_softmax(-1), ours, atol=1e-5, rtol=0)
    for prompt, text in zip((b"import ", b"def f(x):\n"), theirs["texts"], strict=True):
        drawn = model.generate(torch.tensor([vocabulary.encode(prompt, "text")]), 30, Sampling(temperature=0))
        assert text == bytes(vocabulary.byte_values()[number] for number in drawn[0]).decode(errors="replace")


def test_what_is_missing_is_named(tmp_path):
    code = "import runpy, sys; sys.modules['{}'] = None; sys.argv = 'command export x.pt out'.split()\n"
    code += "runpy.run_module('adaptive_span', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code.format("tokenizers")], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.stderr == "error: there is no tokenizers here; pip install 'adaptive-span[export]' brings it\n"


def test_training_does_not_need_it():
    code = "import sys, adaptive_span.training.trainer as _\n"
    code += "sys.exit(bool({'huggingface_hub', 'safetensors', 'tokenizers', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.skipif(not REAL.exists(), reason=f"needs {REAL}, a checkpoint of the original project")
def test_a_real_checkpoint_of_the_original_project_goes_through_all_of_it(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    data = ["data=enwik8", f"data.file={TEXT}", "data.split=[3600000,3000,3000]", "numbering=same"]
    export.main([str(REAL), "out", *data])
    for name, source in (("there", REAL), ("here", "out")):
        evaluate.main([f"checkpoint={source}", *data, "hardware=cpu", f"output={name}"])
    assert splits(tmp_path / "here") == splits(tmp_path / "there")
    capfd.readouterr()
    generate.main(["checkpoint=out", "prompt=The history of ", "length=40", "hardware=cpu"])
    assert capfd.readouterr().out.startswith("The history of ")
    figures.main(["out"])
    assert (tmp_path / "out-spans.png").exists()
    theirs = AutoModelForCausalLM.from_pretrained("out", trust_remote_code=True)
    model, vocabulary = load_model("out")
    with lzma.open(TEXT) as text:
        tokens = torch.tensor([vocabulary.encode(text.read(6000), "text")])
    with torch.no_grad():
        hidden, _ = model.eval().hidden_states(tokens, model.empty_cache(1))
        torch.testing.assert_close(theirs(tokens).logits, model.output(hidden), atol=1e-5, rtol=1e-6)
    assert "for 2,000 steps on enwik8" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(UserError, match="does not hold its vocabulary; name the text that it was trained on"):
        export.main([str(REAL), "other"])
    assert os.listdir(tmp_path).count("other") == 0
