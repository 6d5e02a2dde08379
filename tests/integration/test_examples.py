"""The examples do what they say. The cells of the notebook are run as they stand, which needs no Jupyter."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot

from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"


def test_two_heads_learn_the_two_distances_of_the_task() -> None:
    example = runpy.run_path(str(EXAMPLES / "span_in_plain_attention.py"))
    near, far = example["main"]()
    assert near == pytest.approx(example["NEAR"], abs=2)
    assert far == pytest.approx(example["FAR"], abs=2)


def test_decoder_learns_the_two_distances_of_its_task() -> None:
    example = runpy.run_path(str(EXAMPLES / "decoder_with_spans.py"))
    near, far = example["main"]()
    assert near == pytest.approx(example["NEAR"], abs=2)
    assert far == pytest.approx(example["FAR"], abs=2)


def test_encoder_learns_how_far_its_task_looks_to_each_side() -> None:
    example = runpy.run_path(str(EXAMPLES / "encoder_with_spans.py"))
    loss, spans = example["main"]()
    before, after = spans.amax(1).tolist()
    assert loss < 0.1
    assert before == pytest.approx(example["BEFORE"], abs=2)
    assert after == pytest.approx(example["AFTER"], abs=2)


def test_loop_learns_and_scores_a_stream(text: Path) -> None:
    example = runpy.run_path(str(EXAMPLES / "train_without_hydra.py"))
    model, score = example["main"](text / "train.txt", steps=40, validate_every=40)
    assert score < 5  # bits; a byte that is guessed takes 8
    held_out = torch.frombuffer(bytearray((text / "valid.txt").read_bytes()), dtype=torch.uint8).long()[None, :700]
    in_blocks = example["bits_per_byte"](model, held_out)
    at_once, _ = model.eval()(held_out[:, :-1], held_out[:, 1:], model.empty_cache(1))
    assert in_blocks == pytest.approx(float(at_once.detach().mean()) / np.log(2), rel=1e-5)


def test_notebook_draws_the_spans_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "spans_of_a_checkpoint.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    program = "\n".join("".join(cell["source"]) for cell in cells)
    short = program.replace("steps = 400", "steps = 20")
    assert short != program
    names: dict[str, Any] = {}
    exec(short, names)
    [image] = names["axes"].images
    scored = json.loads(next(Path("runs").glob("*/evaluation.json")).read_text(encoding="utf-8"))
    np.testing.assert_allclose(image.get_array(), np.sort(scored["spans"]), rtol=1e-6)
    pyplot.close(names["figure"])
