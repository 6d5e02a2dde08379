"""Every configuration composes; the recipes are the published ones; what is typed wrong is told in one sentence."""

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from adaptive_span.config.descriptions import describe
from adaptive_span.config.evaluate_schema import EvaluateConfig
from adaptive_span.config.identity import default_run_dir
from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.config.places import CONF
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError
from adaptive_span.storage.stored import from_dict
from tests import conf_comments
from tests.conftest import ROOT, finish, sentence

GROUPS = {
    group: sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
    for group in ("model", "data", "optimizer", "hardware", "tracking")
}


def composed(*overrides: str) -> Config:
    from adaptive_span import compose  # Hydra, which what imports other helpers from here may lack

    return compose(overrides)


@pytest.mark.parametrize("choice", [(group, name) for group, names in GROUPS.items() for name in names], ids="=".join)
def test_every_option_composes(choice):
    needed = {"files": ["data.path=DIR"], "all_attention_words": ["data=wikitext103"]}
    config = composed("=".join(choice), *needed.get(choice[1], []))
    assert from_dict(config.as_dict(), Config, "itself") == config


def test_every_pair_of_model_and_data_has_sane_settings():
    for model, data in itertools.product(GROUPS["model"], GROUPS["data"]):
        words = ["data.level=word"] if model == "all_attention_words" else []
        config = composed(f"model={model}", f"data={data}", *words, *(["data.path=DIR"] if data == "files" else []))
        assert 0 < config.train.warmup_steps < config.train.steps
        assert config.validation.every <= config.train.steps


# The table of the published recipes: N C F H L M dropout optimizer lr clip warm-up penalty persistent steps fine-tuning
# split; then valid, test (or None), and millions of parameters where they were published, with the vocabulary's size.
PUBLISHED = {
    ("enwik8", "small"): (
        8, 256, 1024, 4, 1024, 256, 0, "adagrad", 0.07, 0.03, 8000, 2e-6, 0, 150_000, 0, 1, 1.3, None),
    ("enwik8", "base"): (
        12, 512, 2048, 8, 8192, 512, 0.3, "adagrad", 0.07, 0.03, 32_000, 5e-7, 0, 600_000, 0, 1, 1.04, 1.02),
    ("enwik8", "large"): (
        24, 768, 4096, 8, 8192, 512, 0.4, "adagrad", 0.07, 0.03, 32_000, 5e-7, 0, 150_000, 20_000, 2, 1.00, 0.98),
    ("text8", "base"): (
        12, 512, 2048, 8, 8192, 512, 0.3, "adagrad", 0.07, 0.03, 32_000, 5e-7, 0, 900_000, 0, 1, 1.05, 1.11),
    ("text8", "large"): (
        24, 768, 4096, 8, 8192, 512, 0.4, "adagrad", 0.07, 0.03, 32_000, 5e-7, 0, 250_000, 20_000, 2, 1.01, 1.07),
    ("enwik8", "all_attention_small"): (
        18, 512, 0, 8, 8192, 512, 0.3, "adagrad", 0.07, 0.03, 32_000, 1e-7, 1024, 450_000, 30_000, 2, 1.03, 1.01),
    ("enwik8", "all_attention"): (
        36, 512, 0, 8, 8192, 512, 0.4, "adagrad", 0.07, 0.03, 32_000, 1e-7, 2048, 200_000, 10_000, 2, 1.00, 0.98),
    ("wikitext103", "all_attention_words"): (
        36, 512, 0, 8, 2048, 256, 0.3, "adam", 0.00025, 1.0, 8000, 5e-7, 2048, 800_000, 50_000, 2, 18.8, 19.7),
}  # fmt: skip
MILLIONS = {
    ("enwik8", "base"): (205, 38.5),
    ("enwik8", "large"): (205, 208.9),
    ("text8", "base"): (28, 38.4),
    ("enwik8", "all_attention"): (205, 114.0),
}


@pytest.mark.parametrize("pair", PUBLISHED, ids="_".join)
def test_a_recipe_is_the_published_one(pair):
    data, model = pair
    config = composed(f"data={data}", f"model={model}")
    m, t, o = config.model, config.train, config.optimizer
    assert PUBLISHED[pair] == (
        m.num_layers, m.hidden_size, m.ffn_size, m.num_heads, m.max_span, m.block_size, m.dropout, o.name, o.lr, o.clip,
        t.warmup_steps, t.span_penalty, m.memory_size, t.steps, t.finetune_steps, t.batch_split,
        config.published["valid"], config.published.get("test"),
    )  # fmt: skip
    assert (m.ramp, t.batch_size, m.span_init, m.trim_cache) == (32, 64, 0, True)
    words = data == "wikitext103"
    assert m.embedding_dropout == (0.1 if words else 0)
    assert (m.cutoffs, m.division, m.tied) == ([20_000, 40_000, 200_000] if words else [], 4, True)


@pytest.mark.parametrize("pair", MILLIONS, ids="_".join)
def test_a_model_has_as_many_parameters_as_published(pair):
    import torch

    from adaptive_span import Transformer

    vocab_size, millions = MILLIONS[pair]
    with torch.device("meta"):
        model = Transformer(composed(f"data={pair[0]}", f"model={pair[1]}").model, vocab_size)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_a_modern_model_costs_what_the_published_one_of_its_size_does(size):
    from adaptive_span.benchmark import profiles
    from adaptive_span.hardware import capacity
    from adaptive_span.model import flops

    counted = []
    for name in (size, f"modern_{size}"):
        config = composed(f"model={name}", "data=files", "data.path=DIR").model
        assert replace(config, name=name) == profiles.sizes(name)  # without Hydra
        spans = (profiles.spans("paper", config) + config.ramp).tolist()
        counted.append((capacity.parameters(config, 205), sum(flops.forward(config, 205, spans).values())))
    assert counted[1] == pytest.approx(counted[0], rel=0.03)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_a_modern_model_brings_its_optimizer_and_a_rate_that_falls(size):
    for data in ("stdlib", "enwik8", "text8"):
        config = composed(f"model=modern_{size}", f"data={data}")
        assert (config.optimizer.name, config.train.schedule) == ("muon", "linear")
        assert not config.published
    assert composed(f"model=modern_{size}", "optimizer=adagrad").optimizer.name == "adagrad"


def test_an_optimizer_brings_its_own_rate():
    config = composed("model=large", "data=text8", "optimizer=adam")
    assert (config.optimizer.lr, config.optimizer.clip) == (0.00025, 1.0)


def test_settings_of_the_machine_come_from_conf_local(tmp_path):
    """With a copy of conf/, so that this machine's own settings play no part."""
    import shutil

    shutil.copytree(ROOT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("local"))
    (tmp_path / "conf" / "local").mkdir()
    (tmp_path / "conf" / "local" / "default.yaml").write_text("data: {directory: /scratch}\n")
    shutil.copy(ROOT / "launch.py", tmp_path)
    words = [sys.executable, "launch.py", "--cfg", "job", "-p", "data.directory"]
    assert "/scratch" in finish(words, tmp_path).stdout
    for wrong, told in (
        (
            "data: {directry: x}",
            "conf/local/default.yaml: there is no key 'data.directry'; did you mean 'data.directory'?",
        ),
        ("data: {directory: [", "while parsing a flow node"),
    ):
        (tmp_path / "conf" / "local" / "default.yaml").write_text(wrong)
        assert sentence(finish(words, tmp_path, ok=False)).startswith(told)


def test_the_default_directory_tells_runs_apart_by_what_is_trained_and_by_nothing_else():
    first = default_run_dir(composed())
    assert first.startswith("runs/stdlib-tiny-")
    assert default_run_dir(composed("train.steps=7", "hardware=gpu", "tracking=none", "log.every=3")) == first
    assert default_run_dir(composed("train.seed=2")) != first
    files = [default_run_dir(composed("data=files", f"data.path={path}")) for path in "ab"]
    assert files[0] != files[1]


WRONG = {
    "train.stepps=3": "there is no key 'train.stepps'; did you mean 'train.steps'?",
    "+train.stepps=3": "there is no key 'train.stepps'; did you mean 'train.steps'?",
    "modle=large": "there is no key 'modle'; did you mean 'model'?",
    "model=larg": "model=larg must be one of all_attention, all_attention_small, all_attention_words, base, large,",
    "sweep=null": "null, numbers and lists of them name no file of a group",
    "model=small,base": "model=small,base gives several values; begin with -m for a run with each",
    "model=[small,base]": "data and model take one name each, like data=enwik8 model=base",
    "train.steps=many": "train.steps=many must be a whole number",
    "train.steps=-5": "train.steps=-5 must be at least 1",
    "hardware.compile=perhaps": "hardware.compile=perhaps must be true or false",
    "data.split=[1,b,c]": "data.split=[1,b,c] must be a list of whole numbers",
    "data.split=[1,2]": "data.split=[1, 2] must be three positive numbers",
    "train=3": "train=3 is not a value: it is a group that holds steps,",
    "~train.steps": "train.steps cannot be taken away",
    "train.steps": "cannot read 'train.steps': settings are written key=value",
    "model.num_heads=3": "model.num_heads=3 does not divide model.hidden_size=128; take 1, 2 or 4",
    "model.dropout=1": "model.dropout=1.0 must be at least 0 and below 1",
    "model.span_init=2": "model.span_init=2.0 must be at least 0 and at most 1",
    "optimizer.name=adma": "optimizer.name=adma must be one of adagrad, adam, adamw, muon, sgd; did you mean 'adam'?",
    "optimizer.momentum=0.9": "optimizer.momentum=0.9 goes with optimizer=muon or sgd, not with adagrad",
    "optimizer.span_lr=0.01": "optimizer.span_lr=0.01 goes with optimizer=adamw or muon, not with adagrad",
    "optimizer.name=muon": "optimizer.name=muon alone leaves the rates of another optimizer; give optimizer=muon",
    "optimizer=adamw optimizer.betas=[0.9]": "optimizer.betas=[0.9] must be two numbers",
    "train.final_rate=0.1": "train.final_rate=0.1 has no effect on train.schedule=constant",
    "train.schedule=cosine": "train.finetune_steps=90 follow a rate that stays, and train.schedule=cosine falls",
    "train.schedule=linear train.steps=30": "train.warmup_steps=30 and a fall take more than train.steps=30",
    "train.schedule=linear train.steps=99 train.decay_steps=9": "train.decay_steps=9 goes with train.schedule=warmup_s",
    "train.schedule=warmup_stable_decay train.steps=99 train.decay_steps=90": "train.warmup_steps=30 and 90 of",
    "train.batch_size=15 hardware.processes=2": "train.batch_size=15 must be divisible by processes × slices = 2 × 1",
    "model.cutoffs=[4,2]": "model.cutoffs=[4, 2] must increase",
    "model.cutoffs=[8]": "model.cutoffs=[8] cut a vocabulary of words, but data.level=byte",
    "model.cutoffs=[8,9,10,11,12]": "model.division=4 leaves nothing of model.hidden_size=128 for the last of 6",
    "model.memory_size=8": "model.memory_size=8 takes the place of the feed-forward, but model.ffn_size=512",
    "model.ffn_size=0 model.layer_order=sandwich": "model.layer_order=sandwich orders attention and feed-forward",
    "model.layer_order=aaf": "model.layer_order=aaf must be sandwich, or hold model.num_layers=4 times a",
    "train.span_penalty=nan": "train.span_penalty=nan must be a number that is finite",
    "train.seed=9223372036854775808": "train.seed=9223372036854775808 must be at most 9223372036854775807",
    "optimizer.lr=inf": "optimizer.lr=inf must be a number that is finite",
    "train.init_from=a train.continue_from=b": "train.init_from=a takes weights alone and train.continue_from=b",
    "data=files": "data=files needs data.path=DIR",
    "data.path=x": "data.path=x goes with data=files; for data=stdlib leave it out",
    "data=files data.path=x data.split=[8,1,1]": "data.split=[8, 1, 1] does not go with data=files",
    "data.path=~/x": f"data.path={os.path.expanduser('~/x')} goes with data=files; for data=stdlib leave it out",
    "data.file=x": "data.file=x does not go with data=stdlib",
    "tracking.mode=onlin": "tracking.mode=onlin must be one of auto, online, offline; did you mean 'online'?",
    "train.seed=${trian.seed}": "train.seed refers to a key that does not exist",
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_is_typed_wrong_is_one_sentence(typed, tmp_path):
    result = finish([sys.executable, str(ROOT / "launch.py"), *typed.split()], tmp_path, ok=False)
    assert sentence(result).startswith(WRONG[typed])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("", "evaluate.py needs one of run=DIR"),
        ("run=a checkpoint=b", "evaluate.py needs one of run=DIR"),
        ("run=nowhere", "there is no checkpoint nowhere/checkpoints/best.pt"),
        ("run=a protocol=exakt", "protocol=exakt must be one of exact, published; did you mean 'exact'?"),
        ("run=a batch_size=0", "batch_size=0 must be at least 1"),
        ("run=a bach_size=2", "there is no key 'bach_size'; did you mean 'batch_size'?"),
    ],
)
def test_what_is_asked_of_evaluate_wrongly_is_one_sentence(typed, told, tmp_path):
    result = finish([sys.executable, str(ROOT / "evaluate.py"), *typed.split()], tmp_path, ok=False)
    assert sentence(result).startswith(told)


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job"]])
def test_help_does_not_wait_for_torch(flags, tmp_path):
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: sys.exit('torch' in sys.modules or 'wandb' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "launch.py"), *flags], cwd=tmp_path, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    assert re.search("num_layers[:=] ?4", out.stdout)


def test_a_configuration_made_by_hand_is_checked_the_same_way():
    config = composed()
    config.model.num_heads = 5
    with pytest.raises(UserError, match="does not divide"):
        config.validate()
    with pytest.raises(UserError, match="evaluate"):
        EvaluateConfig().validate()


def test_a_model_made_by_hand_misses_its_sizes_at_once():
    with pytest.raises(TypeError, match="'name', 'ffn_size', 'num_heads', 'max_span', and 'block_size'"):
        ModelConfig(num_layers=4, hidden_size=128)


@pytest.mark.parametrize(("program", "schema"), [("launch", Config), ("evaluate", EvaluateConfig)])
def test_help_says_what_every_key_means(program, schema, tmp_path):
    told = " ".join(finish([sys.executable, str(ROOT / f"{program}.py"), "--help"], tmp_path).stdout.split())
    for name, key in describe(schema).items():
        assert len(key.meaning) > 10, name
        assert re.search(rf" {name}=(.*?) {re.escape(key.meaning.replace('`', ''))}", told), name


@pytest.mark.parametrize("file", conf_comments.FILES)
def test_comments_in_conf_are_those_of_the_fields(file):
    text = (CONF / f"{file}.yaml").read_text(encoding="utf-8")
    assert text == conf_comments.commented(file, conf_comments.FILES[file]), "run python -m tests.conf_comments"
