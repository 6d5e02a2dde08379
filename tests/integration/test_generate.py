"""`adaptive-span generate` writes text by a run, by an old checkpoint, and refuses what it cannot continue."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.generate_schema import GenerateConfig
from adaptive_span.config.hardware_schema import HardwareConfig
from adaptive_span.errors import UserError
from adaptive_span.generation.generate import generate
from tests.conftest import ENVIRONMENT, ROOT, finish, sentence

COMMAND = [sys.executable, "-m", "adaptive_span", "generate", "hardware=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text) -> Path:
    """A run of bytes, and one of words."""
    folder = tmp_path_factory.mktemp("generate")
    small = (
        "data=files tracking=none hardware=cpu model.num_layers=2 model.hidden_size=32 model.ffn_size=64 "
        "model.num_heads=4 model.max_span=96 model.block_size=16 train.steps=30 train.batch_size=8 "
        "train.warmup_steps=4 validation.every=30 validation.blocks=2 checkpoint.every=30 log.every=30"
    ).split()
    for name, level in (("bytes", "byte"), ("words", "word")):
        words = [sys.executable, str(ROOT / "launch.py"), *small, f"data.path={text}", f"data.level={level}"]
        finish([*words, f"run.dir={name}"], folder)
    return folder


def written(folder: Path, *settings: str, given: bytes = b"") -> tuple[bytes, str]:
    """Return the text, and what is printed beside it."""
    done = subprocess.run([*COMMAND, *settings], cwd=folder, input=given, capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout, done.stderr.decode()


def test_bytes_are_written_after_the_prompt_and_the_same_seed_repeats_them(folder):
    text, cost = written(folder, "run=bytes", "prompt=one, two", "length=60", "seed=3")
    assert text.startswith(b"one, two")
    assert text == written(folder, "run=bytes", "length=60", "seed=3", given=b"one, two")[0]
    assert text != written(folder, "run=bytes", "prompt=one, two", "length=60", "seed=4")[0]
    assert "60 tokens in " in cost
    assert "% of the" in cost
    (folder / "prompt.txt").write_bytes(b"one, two")
    several, _ = written(folder, "run=bytes", "prompt_file=prompt.txt", "length=60", "samples=3", "temperature=0")
    parts = several.decode().split("=== ")[1:]
    assert [part.partition("\n")[0] for part in parts] == ["1 of 3", "2 of 3", "3 of 3"]
    assert len({part.partition("\n")[2] for part in parts}) == 1  # the most likely text is one


def test_bytes_that_are_no_text_are_marked(folder):
    checkpoint = torch.load(folder / "bytes" / "checkpoints" / "best.pt", weights_only=True)
    symbols = checkpoint["vocabulary"]["symbols"].split("\n")
    checkpoint["model"]["output.bias"][symbols.index("195")] = 50.0  # the first byte of two
    torch.save(checkpoint, folder / "half.pt")
    text, _ = written(folder, "checkpoint=half.pt", "prompt=a", "length=5")
    assert text.decode() == "a" + 5 * "\ufffd" + "\n"


def test_words_are_written_with_spaces_between_them(folder):
    text, _ = written(folder, "run=words", "length=30", given=b"one two\nthree")
    assert text.startswith(b"one two\nthree ")
    assert len(text.split()) > 10


@pytest.mark.parametrize(
    ("settings", "problem"),
    {
        ("run=bytes", "checkpoint=x.pt"): "generate needs one of run=DIR",
        ("run=bytes", "prompt_file=none.txt"): "prompt_file=none.txt cannot be read (No such file or directory)",
        ("run=bytes",): "the prompt is empty; give at least one symbol",
        (
            "run=bytes",
            "prompt=a\nb",
        ): "prompt=a\\nb holds a line end; give it by prompt_file=FILE",
        ("run=bytes", "temperature=-1"): "temperature=-1.0 must be at least 0",
        ("run=bytes", "top_p=0"): "top_p=0.0 must be above 0 and at most 1",
        ("run=bytes", "hardware.processes=2"): "hardware.processes=2, but one process writes",
    }.items(),
    ids=str,
)
def test_what_cannot_be_continued_is_a_sentence(settings, problem, folder):
    done = subprocess.run([*COMMAND, *settings], cwd=folder, input="", capture_output=True, text=True, env=ENVIRONMENT)
    assert problem in sentence(done)


@pytest.fixture
def other(folder):
    """A checkpoint of the words' run, changed."""

    def changed(**changes) -> str:
        checkpoint = torch.load(folder / "words" / "checkpoints" / "best.pt", weights_only=True)
        kept = {key: value for key, value in (checkpoint | changes).items() if value is not None}
        torch.save(kept, folder / "other.pt")
        return str(folder / "other.pt")

    return changed


def asked(checkpoint: str, prompt: str) -> GenerateConfig:
    data, hardware = DataConfig(name=""), HardwareConfig(device="cpu")
    config = GenerateConfig(checkpoint=checkpoint, prompt=prompt, length=5, data=data, hardware=hardware)
    config.validate()
    return config


def test_a_prompt_of_words_that_the_model_cannot_know_is_a_sentence(folder, other):
    vocabulary = torch.load(folder / "words" / "checkpoints" / "best.pt", weights_only=True)["vocabulary"]
    known = vocabulary["symbols"].replace("<unk>", "zyx")
    checkpoint = other(vocabulary=vocabulary | {"symbols": known})
    with pytest.raises(UserError) as refused:
        generate(asked(checkpoint, "import qwertz and qwertz"))
    assert str(refused.value) == (
        f"the prompt holds 1 word(s) that the vocabulary of {checkpoint} ({len(known.splitlines()):,} words) lacks: "
        "'qwertz'; give a text without them, or other weights"
    )


def test_a_checkpoint_without_a_vocabulary_says_how_to_give_it(text, other):
    checkpoint = other(vocabulary=None)
    with pytest.raises(
        UserError, match="does not hold its vocabulary; name the text that it was trained on with data="
    ):
        generate(asked(checkpoint, "import"))


def test_a_prompt_may_be_longer_than_what_all_layers_see(folder, capsys):
    """Two layers of at most 96 tokens: what lies further back changes nothing."""
    checkpoint = str(folder / "bytes" / "checkpoints" / "best.pt")
    texts = []
    for beginning in ("", 800 * "x", 800 * "yz"):
        generate(asked(checkpoint, beginning + 40 * "import"))
        texts.append(capsys.readouterr().out.removeprefix(beginning))
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) >= 240 + 5
