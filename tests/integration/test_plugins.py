"""What a module beside the run registers trains, resumes and shares a batch as the project's own does."""

import json
import sys
from pathlib import Path

import pytest

from adaptive_span import compose
from adaptive_span.config.registry import ATTENTIONS, OPTIMIZERS, SCHEDULES, TRACKERS
from tests.conftest import ROOT, finish, metrics, sentence
from tests.integration.test_train import assert_same_run, losses

MODULE = '''
import torch
from adaptive_span.attention import dense
from adaptive_span.attention.dispatch import register_attention
from adaptive_span.reporting.tracking import Service, register_tracker
from adaptive_span.training.optimizer import register_optimizer
from adaptive_span.training.schedule import register_schedule


@register_optimizer("nadam", state=2)
def nadam(params, lr, config):
    """Build AdamW."""
    return torch.optim.AdamW(params, lr=lr)


@register_attention("halved")
def halved(context, position_embedding, geometry, dropout=0.0, memory=None):
    """Return half of what the definition gives."""
    attended = dense.attend(context, position_embedding, geometry, dropout, memory)
    return attended._replace(output=attended.output / 2)


@register_schedule("falling")
def falling(step, peak, train):
    """Fall to nothing in a straight line."""
    return peak * (1 - step / 100)


@register_tracker("lines")
class Lines(Service):
    """Keep the loss in a text file."""

    def __init__(self, directory, config, run_id):
        self.run_id = self.place = str(directory / "lines.txt")

    def log(self, step, metrics, spans):
        with open(self.place, "a") as file:
            file.write(f"{step} {metrics['train/bpc']} {spans[1][3]}\\n")

    def result(self, evaluation):
        with open(self.place, "a") as file:
            file.write(f"scored {evaluation['splits']['test']['bpc']}\\n")

    def finish(self, exit_code):
        with open(self.place, "a") as file:
            file.write(f"ended with {exit_code}\\n")
'''
OWN = [
    "plugins=[my_module]",
    "optimizer.name=nadam",
    "optimizer.lr=0.001",
    "train.schedule=falling",
    "tracking.name=lines",
    "model.attention=halved",
]


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "my_module.py"
    path.write_text(MODULE)
    return path


def test_what_a_module_registers_trains_and_resumes_to_the_same_bits(module, launch, tmp_path):
    launch(*OWN, "run.dir=straight", "model.dropout=0.1")
    launch(*OWN, "run.dir=resumed", "model.dropout=0.1", "train.steps=12")
    out = launch(*OWN, "run.dir=resumed", "model.dropout=0.1").stdout
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    assert [line["lr"] for line in metrics(tmp_path / "straight")][-1] == 0.001 * (1 - 24 / 100)
    assert "--config resumed/config.yaml train.steps=48 'plugins=[my_module]'" in out
    kept = [line.split() for line in (tmp_path / "resumed" / "lines.txt").read_text().splitlines()]
    assert [line[0] for line in kept] == "5 10 12 scored ended 15 20 24 scored ended".split()
    assert float(kept[-3][1]) == metrics(tmp_path / "resumed")[-1]["train/bpc"]
    scores = json.loads((tmp_path / "resumed" / "evaluation.json").read_text())
    assert float(kept[-2][1]) == scores["splits"]["test"]["bpc"]
    told = sentence(launch("--config", "resumed/config.yaml", ok=False))
    assert "has plugins=['my_module'], whose code would run" in told
    other = sentence(launch(*OWN, "run.dir=resumed", "model.dropout=0.1", "model.attention=dense", ok=False))
    assert "was begun with another configuration: model.attention (halved → dense)" in other


def test_what_was_trained_with_an_attention_is_scored_with_it(module, launch, tmp_path):
    launch(*OWN, "run.dir=run", "train.steps=4")
    scored = (tmp_path / "run" / "evaluation.json").read_text()
    evaluate = [sys.executable, str(ROOT / "evaluate.py"), "run=run", "hardware=cpu"]
    assert sentence(finish(evaluate, tmp_path, ok=False)).startswith(
        "run/checkpoints/best.pt was trained with model.attention=halved, which is not registered; give plugins=[…]"
    )
    finish([*evaluate, "plugins=[my_module]"], tmp_path)
    again = (tmp_path / "run" / "evaluation.json").read_text()
    splits = [json.loads(text)["splits"]["test"]["bpc"] for text in (scored, again)]
    assert splits[1] == pytest.approx(splits[0], abs=1e-6)


def test_two_processes_import_it_too(module, launch, tmp_path):
    launch(*OWN, "run.dir=one", "train.steps=8", "log.every=1")
    launch(*OWN, "run.dir=two", "train.steps=8", "log.every=1", "hardware.processes=2")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


WRONG = {
    "plugins=my_module cannot be imported (there is no module my_module in ": None,
    "plugins=my_module cannot be imported (ModuleNotFoundError: No module named 'nothing'": "import nothing",
    "plugins=my_module cannot be imported (ZeroDivisionError: division by zero, line 1 of ": "1 / 0",
    "optimizer.name=adam is registered twice; give the new one": MODULE.replace("nadam", "adam"),
    "optimizer.name=nadam must be one of adagrad, adam, adamw, muon, sgd, nadan; did": MODULE.replace("nadam", "nadan"),
    "optimizer.name=nadam must build a torch.optim.Optimizer, but gave float": MODULE.replace(
        "torch.optim.AdamW(params, lr=lr)", "lr"
    ),
}


@pytest.mark.parametrize("told", WRONG)
def test_a_module_that_cannot_be_used_is_one_sentence(told, command, tmp_path):
    if WRONG[told]:
        (tmp_path / "my_module.py").write_text(WRONG[told])
    assert sentence(finish(command(*OWN, "run.dir=run"), tmp_path, ok=False)).startswith(told)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("registry", [ATTENTIONS, OPTIMIZERS, SCHEDULES, TRACKERS], ids=lambda registry: registry.key)
def test_every_built_in_name_stands_for_something(registry):
    for name in registry:
        assert callable(registry[name])
        if registry is OPTIMIZERS:
            compose([f"optimizer={name}"])  # which brings what the optimizer reads
        else:
            compose([f"{registry.key}={name}", "train.finetune_steps=0"])
