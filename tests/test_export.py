"""Every variant comes back from a folder of the Hugging Face Hub's form as it was."""

import subprocess
import sys

import pytest
import torch

from adaptive_span import export
from tests.conftest import ROOT, finish
from tests.test_published import VECTORS, original


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_the_round_trip_is_exact(path, tmp_path):
    torch.save(original(torch.load(path, weights_only=True)), tmp_path / "x.pt")
    model = export.from_checkpoint(tmp_path / "x.pt").eval()
    words = [sys.executable, "-m", "adaptive_span.export", "x.pt", "exported"]
    finish(words, tmp_path)
    again = export.PretrainedTransformer.from_pretrained(tmp_path / "exported")
    assert again.config == model.config
    tokens = torch.randint(model.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    first, _ = model.log_probabilities(tokens, model.empty_cache(2))
    second, _ = again.log_probabilities(tokens, again.empty_cache(2))
    assert torch.equal(first, second)
    assert {p.data_ptr() for p in again.parameters()} == {t.data_ptr() for t in again.state_dict().values()}


def test_training_does_not_need_it():
    code = "import sys, adaptive_span.trainer; sys.exit(bool({'huggingface_hub', 'safetensors'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
