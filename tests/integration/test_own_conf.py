"""A folder `conf` in the working directory adds to the project's files of a group, and goes before them."""

from pathlib import Path

import pytest
import yaml

from adaptive_span import compose
from tests.conftest import SMALL

OWN = {
    "conf/model/mine.yaml": "name: mine\nnum_layers: 2\nhidden_size: 32\nffn_size: 64\nnum_heads: 4\nmax_span: 96\n"
    "block_size: 16\n",
    "conf/optimizer/sgd.yaml": "name: sgd\nlr: 0.123\nclip: 1.0\n",
    "conf/local/default.yaml": "train: {seed: 77}\n",
    "conf/sweep/two.yaml": "train.seed: 1,2\n",
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in OWN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_own_files_are_composed(own):
    config = compose(["model=mine", "data=enwik8", "optimizer=sgd"])
    assert (config.model.name, config.optimizer.lr, config.train.seed) == ("mine", 0.123, 77)
    assert compose(["model=small", "data=enwik8"]).model.name == "small"


def test_an_own_sweep_of_an_own_model_trains(own, launch):
    launch("sweep=two", "model=mine", *(word for word in SMALL if word.startswith("train.")), "run.dir=out")
    kept = [yaml.safe_load((own / f"out/{number}/config.yaml").read_text()) for number in range(2)]
    assert [(each["model"]["name"], each["train"]["seed"]) for each in kept] == [("mine", 1), ("mine", 2)]
    launch("--config", "out/1/config.yaml", "train.steps=30")  # the seed is that of the file, not of conf/local
    assert yaml.safe_load((own / "out/1/config.yaml").read_text())["train"] == kept[1]["train"] | {"steps": 30}
