"""Every variant comes back from a folder of the Hugging Face Hub's form as it was."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptive_span.checkpoint import hugging_face
from adaptive_span.errors import UserError
from tests.conftest import ROOT, finish, sentence
from tests.unit.checkpoint.test_published import VECTORS, as_the_original_saves


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_the_round_trip_is_exact(path, tmp_path):
    torch.save(as_the_original_saves(torch.load(path, weights_only=True)), tmp_path / "x.pt")
    model = hugging_face.from_checkpoint(tmp_path / "x.pt").eval()
    words = [sys.executable, "-m", "adaptive_span", "export", "x.pt", "exported"]
    finish(words, tmp_path)
    again = hugging_face.PretrainedTransformer.from_pretrained(tmp_path / "exported")
    assert again.config == model.config
    tokens = torch.randint(model.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    first, _ = model.log_probabilities(tokens, model.empty_cache(2))
    second, _ = again.log_probabilities(tokens, again.empty_cache(2))
    assert torch.equal(first, second)
    assert {p.data_ptr() for p in again.parameters()} == {t.data_ptr() for t in again.state_dict().values()}


def shortened(weights: Path) -> None:
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if name != "positions"}, weights)


CHANGES = {
    "lacks positions": (shortened, 'Missing key(s) in state_dict: "positions"'),
    "cut": (lambda weights: weights.write_bytes(weights.read_bytes()[:-9]), "does not hold the weights of its config"),
    "no safetensors": (lambda weights: weights.write_bytes(b"{" * 99), "does not hold the weights of its config.json"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_weights_that_are_damaged_or_not_all_there_are_refused(what, tmp_path):
    torch.save(as_the_original_saves(torch.load(VECTORS[0], weights_only=True)), tmp_path / "x.pt")
    hugging_face.from_checkpoint(tmp_path / "x.pt").save_pretrained(tmp_path / "exported")
    change, told = CHANGES[what]
    change(tmp_path / "exported" / "model.safetensors")
    with pytest.raises(UserError, match=re.escape(told)):
        hugging_face.PretrainedTransformer.from_pretrained(tmp_path / "exported")


def test_what_an_extra_brings_is_named_where_it_is_missing(tmp_path):
    code = "import runpy, sys; sys.modules['huggingface_hub'] = None; sys.argv = 'command export x.pt out'.split()\n"
    code += "runpy.run_module('adaptive_span', run_name='__main__')"
    result = finish([sys.executable, "-c", code], tmp_path, ok=False)
    assert sentence(result) == "there is no huggingface_hub here; pip install 'adaptive-span[export]' brings it"


def test_training_does_not_need_it():
    code = "import sys, adaptive_span.training.trainer as _\n"
    code += "sys.exit(bool({'huggingface_hub', 'safetensors'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
