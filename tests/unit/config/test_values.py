"""Every value of every key either runs or is refused in one sentence, with nothing allocated or left behind."""

import dataclasses
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptive_span import Transformer
from adaptive_span.config import overrides
from adaptive_span.config.evaluate_schema import EvaluateConfig
from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.config.schema import Config
from adaptive_span.data.corpus import prepare
from adaptive_span.distributed import Process
from adaptive_span.errors import UserError
from adaptive_span.hardware import capacity, machine
from adaptive_span.launch import command_line, local, sweep_jobs
from adaptive_span.launch.search import sweeper as search_sweeper
from adaptive_span.launch.slurm import launcher as slurm_launcher
from adaptive_span.training import out_of_memory
from adaptive_span.training.trainer import Trainer
from tests.conftest import ROOT, SMALL, finish, sentence
from tests.unit.config.test_config import composed

REFUSED = {
    "sweep=[1,2]": "null, numbers and lists of them name no file of a group",
    "model=[1,2]": "null, numbers and lists of them name no file of a group",
    "model=1": "null, numbers and lists of them name no file of a group",
    "model.hidden_size=99999999999999999999": "model.hidden_size=99999999999999999999 must be at most 2147483647",
    "model.hidden_size=1000000007": "model.num_heads=4 does not divide model.hidden_size=1000000007; take 1 or",
    "model.max_span=2000000000": "this needs at least 768.0 GB in each process, 768.0 of them for model.max_span=2000",
    "model.ffn_size=2000000000": "this needs at least 24,672.0 GB in each process, 24,672.0 of them for model.ffn_size",
    "model.ffn_size=0 model.memory_size=2000000000": "this needs at least 24,576.0 GB",
    "train.batch_size=1000000000": "this needs at least 32,768.0 GB in each process, 32,768.0 of them for train.",
    f"train.steps={'9' * 5000}": "a number of thousands of digits is more than any key takes",
    "model.num_layers=99999": "model.num_layers=99999 must be at most 10000",
    "model.ramp=99999999999999999999": "model.ramp=99999999999999999999 must be at most 2147483647",
    "optimizer.lr=1e39": "optimizer.lr=1e+39 is beyond single precision, whose numbers end at 3.4e+38",
    "data=enwik8 data.urls=[]": "data=enwik8 has neither data.file nor data.urls",
    "data=enwik8 data.urls=[x]": "data.urls=x must be the address of a file, like https://",
    "data=enwik8 data.sha256=x": "data.sha256=x must be 64 digits of 0-9 and a-f",
    "optimizer.lr=1e-50": "optimizer.lr=1e-50 is below single precision",
    "run.dir='a\nb'": r"run.dir=a\nb holds a line break",
    "run.dir=''": "run.dir= is empty",
    "tracking.tags=['']": "tracking.tags= is empty",
    "-m train.seed=1,x": "train.seed=x must be a whole number",
    "-m train.seed=1,-1": "train.seed=-1 must be at least 0",
    "-m train.batch_size=16,1000000000": "this needs at least 32,768.0 GB",
    "hardware.processes=1000 train.batch_size=1000": "hardware.processes=1000 is more than 4 for each of the",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_what_cannot_be_is_one_sentence_and_leaves_nothing(typed, tmp_path):
    words = [sys.executable, str(ROOT / "launch.py"), *typed.split(" "), "hardware.device=cpu"]
    assert sentence(finish(words, tmp_path, ok=False)).startswith(REFUSED[typed])
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_does_not_wait_for_torch(tmp_path):
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    for typed in ("train.steps=-5", "model.max_span=2000000000"):
        assert finish([sys.executable, "-c", code, str(ROOT / "launch.py"), typed], tmp_path, False).stdout == "False\n"


def test_a_vocabulary_that_cannot_be_held_is_refused_by_its_size():
    with pytest.raises(UserError, match=r"308\.4 of them for a vocabulary of 100,000,000, but a process has 20\.0 GB"):
        capacity.check_memory(composed(), 10**8, 1, 20 * 10**9)
    with pytest.raises(UserError, match=r"for batch_size=1000000 with block_size=64, but a process has 0\.3 GB"):
        capacity.check_scoring(composed().model, 256, 10**6, 64, 3 * 10**8)
    capacity.check_memory(composed(), 256, 1, None)  # a machine that does not say


@pytest.mark.parametrize(
    ("model", "data"), [("tiny", "stdlib"), ("all_attention", "enwik8"), ("all_attention_words", "wikitext103")]
)
def test_the_least_that_is_needed_is_less_than_the_estimate(model, data):
    config, vocab_size = composed(f"model={model}", f"data={data}"), 270_000 if data == "wikitext103" else 256
    with torch.device("meta"):
        made = Transformer(config.model, vocab_size)
    count = sum(parameter.numel() for parameter in made.parameters())
    assert capacity.parameters(config.model, vocab_size) == count
    heads = [[32] * config.model.num_heads] * config.model.num_layers
    estimate = out_of_memory.step_bytes(config, 1, count, heads)
    capacity.check_memory(config, vocab_size, 1, int(1.1 * estimate))


def test_keys_of_slurm_are_warned_of_where_nobody_reads_them(launch):
    result = launch("run.dir=run", "train.steps=1", "hardware.time=60", "hardware.account=me")
    [warning] = [line for line in result.stderr.splitlines() if line.startswith("warning: hardware.")]
    assert warning.startswith("warning: hardware.account, hardware.time ask SLURM for something")
    assert "warning: hardware." not in launch("run.dir=run", "train.steps=1").stderr


def test_every_number_has_a_range():
    for key in overrides.keys(Config) | overrides.keys(EvaluateConfig):
        *parents, name = key.split(".")
        part = EvaluateConfig if not parents and name in ("batch_size", "block_size") else Config
        for parent in parents:
            part = {field.name: field.type for field in dataclasses.fields(part)}[parent]
        hint = {field.name: field.type for field in dataclasses.fields(part)}.get(name, str)
        assert hint not in (int, float, int | None, float | None, list[int]), key


# Text as Hydra's grammar has it: what is not read as a value of some kind is refused there, in one sentence too.
EDGES = [
    "0", "1", "2", "3", "-1", "-0", "1e5", "4096", "2147483647", "2147483648", "9223372036854775807",
    "9223372036854775808", "99999999999999999999", "-99999999999999999999", "9" * 5000, "0.1", "0.5", "1.0", "-1.0",
    "1e-5", "1e-39", "1e-46", "1e38", "1e39", "1e400", "-1e400", "nan", "inf", "-inf", "true", "false", "null", "''",
    "' '", "word", "'a b'", "'日本'", "'a\\nb'", "'a\nb'", "'\x1b[2J'", "'\x00'", "'\u2028'", "'\udcff'",
    "'../x'", "'/'",
    "'~'", "[]", "[1,2]", "[1,2,3]", "[0,0,0]", "[-1]", "[a,b]", "['']", "[null]", "[[1]]", "[1e400]", "{}", "{a: 1}",
    "{a: nan}", "{1: 2}", "???", "'???'", "${train.seed}", "${nothing}", "'" + "x" * 300 + "'", "'" + "x" * 5000 + "'",
    "auto", "cpu", "cuda", "dense", "banded", "fused", "sandwich", "adam", "sgd", "bf16", "word", "exact", "same",
]  # fmt: skip
VALUES = st.sampled_from(EDGES) | st.integers(-(2**70), 2**70).map(str) | st.floats().map(str)
PROGRAMS = {"launch": Config, "evaluate": EvaluateConfig}


@st.composite
def settings_of(draw, program):
    keys = sorted(set(overrides.keys(PROGRAMS[program])) - {"data.directory"})
    chosen = draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3, unique=True))
    return [f"{key}={draw(VALUES)}" for key in chosen]


def read(program, words):
    schema = PROGRAMS[program]
    command_line.register(program, schema, local, sweep_jobs, slurm_launcher, search_sweeper)
    with command_line.explain_hydra_errors(schema):
        words = overrides.complete(words, schema, sweeping=False)
        config = command_line.typed(compose(program, overrides=words), schema)
        config.validate()
    return config


def is_cheap(config):
    model, train = config.model, config.train
    work = capacity.parameters(model, 256) + train.batch_size * model.block_size * model.hidden_size * model.num_layers
    span = model.max_span if not model.adaptive_span or model.span_init or not model.trim_cache else 0
    return (
        work + train.batch_size * span * model.hidden_size * model.num_layers < 3_000_000
        and model.num_layers < 20
        and not config.hardware.compile
        and config.data.name == "files"
        and config.hardware.device != "cuda"
        and config.model.attention != "fused"
        and not (train.init_from or train.continue_from)
    )


@pytest.fixture(scope="module")
def base(text, tmp_path_factory):
    """The words of a training of one cheap step; what is drawn comes after them."""
    directory = tmp_path_factory.mktemp("values")
    with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        patch.chdir(directory)
        yield ["data=files", f"data.path={text}", f"data.directory={directory}/data", *SMALL, "train.steps=1"]


@settings(max_examples=60)
@given(words=settings_of("launch"))
def test_any_value_runs_or_is_one_sentence(base, words):
    with suppress(UserError):  # which is one line, whatever is in it
        config = read("launch", [*base, *words])
        capacity.check_here(config)
        if is_cheap(config):
            run_a_step(config)


def run_a_step(config):
    process = Process(0, 1, torch.device("cpu"))
    corpus = prepare(config.data, config.model.reads_by_frequency)
    capacity.check_memory(config, corpus.vocab_size, 1, machine.memory())
    run = Trainer(config, corpus, process, Path("run"), ())
    run.state.update()
    run.state.collect()


@settings(max_examples=40)
@given(words=settings_of("evaluate"))
def test_any_value_of_a_scoring_is_read_or_is_one_sentence(base, words):
    with suppress(UserError):  # which is one line, whatever is in it
        capacity.check_processes(read("evaluate", ["run=a", *words]).hardware)


def test_a_field_made_by_hand_is_checked_as_one_that_is_typed():
    for wrong in (True, "1", 1.5, None, [1]):
        with pytest.raises(UserError, match=r"hardware\.nodes=.* must be a whole number"):
            HardwareConfig(nodes=wrong).validate()


def test_an_error_is_one_line_whatever_it_repeats():
    assert str(UserError("a\nb \x1b[2J \u2028 \udcff ç")) == r"a\nb \x1b[2J \u2028 \udcff ç"
