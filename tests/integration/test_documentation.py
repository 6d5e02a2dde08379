"""What the README and the documentation tell people to type can be typed: snippets of Python run, trainings and
evaluations are composed, and other commands, options, tests and files exist."""

import json
import re
import shlex
import sys

import pytest

from adaptive_span import compose
from adaptive_span.benchmark.cost_model import CARDS
from adaptive_span.cli import benchmark
from adaptive_span.cli.main import COMMANDS
from adaptive_span.reporting.run_directory import write_config
from tests.conftest import ROOT, finish

PAGES = [ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
FILE = re.compile(r".*`(?:\./)?(conf/[\w/]+\.yaml|\w+\.py)`[^`]*(?:`[^`]*`[^`]*)?", re.S)  # named right before a block
PLACEHOLDERS = {"…", "...", "DIR", "FILE", "OUT", "WHAT"}

# Each folder with the words of what is composed in it, in one process.
COMPOSE = """
import contextlib, io, json, os, sys
from adaptive_span.cli import evaluate, train
for folder, command, words in json.loads(sys.argv[1]):
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            {"train": train, "evaluate": evaluate}[command].main([*words, "--cfg", "job"])
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{command} {words} ended with {ended.code}")
"""
# Each name with a snippet, in one process.
SNIPPETS = """
import json, sys
for name, snippet in json.loads(sys.argv[1]):
    exec(compile(snippet.replace("train.steps=100", "train.steps=2"), name, "exec"), {})
"""


def blocks(page, *languages):
    """Yield the blocks of a page, each with what stands before it."""
    text, end = page.read_text(encoding="utf-8"), 0
    for block in BLOCK.finditer(text):
        if block[1] in languages:
            yield text[end : block.start()].strip(), block[2]
        end = block.end()


def commands(page):
    """Yield the words of each command, in blocks and within lines."""
    text = page.read_text(encoding="utf-8")
    lines = [line for _, block in blocks(page, "", "sh") for line in block.replace("\\\n", " ").splitlines()]
    spans = [span.replace("\\|", "|") for span in re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))]
    for line in lines + spans:
        for part in re.split(r"&&|;", line):
            if re.match(r"\s*(python|pytest|torchrun|adaptive-span) ", part + " ") and "$" not in part:
                words = [word for word in shlex.split(part, comments=True) if word not in PLACEHOLDERS]
                if words[:3] == ["python", "-m", "adaptive_span"]:
                    words = ["adaptive-span", *words[3:]]
                if len(words) > 1:
                    yield words


def composed(words):
    """Return which program a command has Hydra compose for, and the words for it, of a sweep those of its first job."""
    for program, command in (("launch.py", "train"), ("evaluate.py", "evaluate")):
        if program in words:
            words = ["adaptive-span", command, *words[words.index(program) + 1 :]]
    match words:
        case ["adaptive-span", "estimate", *rest]:
            return "train", [word for word in rest if word.removeprefix("gpu=") not in CARDS]
        case ["adaptive-span", "data", name, *rest]:
            return "train", [f"data={name}", *rest]
        case ["adaptive-span", ("train" | "evaluate") as command, *rest]:
            return command, [re.sub(r"^([\w.]+=[^,[{]+),.*", r"\1", word) for word in rest if word != "-m"]
    return None


ALL = [(page, words) for page in PAGES for words in commands(page)]


def test_every_training_and_evaluation_is_composed(tmp_path):
    asked = {}  # once each
    for page in PAGES:
        folder = tmp_path / page.stem
        (folder / "RUN").mkdir(parents=True)
        write_config(compose(), folder / "RUN")
        for before, block in blocks(page, "yaml", "python"):
            if named := FILE.fullmatch(before):
                (folder / named[1]).parent.mkdir(parents=True, exist_ok=True)
                (folder / named[1]).write_text(block, encoding="utf-8")
        mine = [found for where, words in ALL if where == page and (found := composed(words))]
        asked |= {(command, *words): str(folder) for command, words in mine}
    assert len(asked) > 30
    words = [(folder, command, rest) for (command, *rest), folder in asked.items()]
    finish([sys.executable, "-c", COMPOSE, json.dumps(words)], tmp_path)


def test_every_snippet_runs(tmp_path):
    snippets = [(str(page), block) for page in PAGES for _, block in blocks(page, "python")]
    assert len(snippets) >= 5
    (tmp_path / "book.txt").write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    finish([sys.executable, "-c", SNIPPETS, json.dumps(snippets)], tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_other_command_exists(page):
    for where, words in ALL:
        match words:
            case _ if where != page or composed(words):
                pass
            case ["adaptive-span", "benchmark", *rest] | ["python", "-m", "adaptive_span.benchmark", *rest]:
                if rest and rest != ["--help"]:
                    assert benchmark.parse([word for word in rest if word != "--figure"])
            case ["adaptive-span", command, *_]:
                assert command in (*COMMANDS, "--help", "COMMAND", "NAME")
            case ["pytest", *rest] | ["python", "-m", "pytest", *rest]:
                check_tests(rest)
            case ["python", "-m", module, *rest] if module.startswith("tests."):
                assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
                check_tests(rest)
            case _:
                assert words in (["python", "-m", "adaptive_span.NAME"], ["python", "-m", "venv", ".venv"]), words


def check_tests(words):
    """The paths are there, and so is a test, or what a test is given, for each name that -k selects."""
    paths = [path for word in words if word.startswith("tests") for path in [*ROOT.glob(word)] or [ROOT / word]]
    assert all(path.exists() for path in paths), words
    names = words[words.index("-k") + 1].split(" or ") if "-k" in words else []
    for name in names:
        files = [file for path in paths for file in (path.rglob("test_*.py") if path.is_dir() else [path])]
        assert any(name in file.stem + file.read_text(encoding="utf-8") for file in files), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_classes_and_methods_are_there(page):
    text = page.read_text(encoding="utf-8")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "adaptive_span").rglob("*.py"))
    for path in re.findall(r"`((?:\w+/)+\w+\.(?:py|yml|md))`", text):
        assert any((base / path).exists() for base in (ROOT, ROOT / "adaptive_span", ROOT / "examples")), path
    for owner, member in re.findall(r"`([A-Z][a-z]\w+)\.(\w+)(?:\(\))?`", text):
        assert re.search(rf"^class {owner}\b", sources, re.M), owner
        assert re.search(rf"^    def {member}\b", sources, re.M), f"{owner}.{member}"
