"""A wheel, and a source distribution, train and benchmark in an empty folder, far from this tree."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.conftest import ENVIRONMENT, ROOT, SMALL

ELSEWHERE = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, as they would be published."""
    folder = tmp_path_factory.mktemp("built")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)], folder)
    return folder


def files(folder: Path) -> set[str]:
    """The names of a folder's files, without what Python and one machine add to it."""
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(name) for name in names if not {"__pycache__", "local"} & set(name.parts)}


def run(words: list[str], directory: Path) -> str:
    result = subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=300, env=ELSEWHERE)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.mark.xdist_group("install")  # one build
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_what_is_published_trains_and_benchmarks_in_an_empty_folder(kind, built, text, tmp_path):
    venv.create(tmp_path / "venv")
    python, folder = str(tmp_path / "venv" / "bin" / "python"), tmp_path / "empty"
    folder.mkdir()
    # Torch and the rest are those of the tests' own environment, without the checkout that is installed there.
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    (site / "rest.pth").write_text(sysconfig.get_path("purelib"))
    [archive] = built.glob(kind)
    pip = [sys.executable, "-m", "pip", "--python", python]
    run([*pip, "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", str(archive)], folder)

    command = str(tmp_path / "venv" / "bin" / "adaptive-span")
    where = run([python, "-c", "import adaptive_span; print(adaptive_span.__file__)"], folder)
    package = Path(where.strip()).parent
    assert package.is_relative_to(tmp_path)
    for here, there in (("adaptive_span", package), ("conf", package / "conf"), ("sweeps", package / "conf" / "sweep")):
        assert files(ROOT / here) <= files(there), f"setup.cfg lists not all of {here}"
    assert not (package / "conf" / "local").exists()  # settings of this machine
    data = ["data=files", f"data.path={text}"]
    run([command, "train", *data, *SMALL, "train.steps=20", "run.dir=run"], folder)
    assert (folder / "run" / "evaluation.json").is_file()
    run([command, "evaluate", "run=run", "hardware=cpu", "protocol=published", "batch_size=2"], folder)
    assert "train.seed" in run([command, "train", *data, "sweep=seeds", "--cfg", "job"], folder)
    ways = "step --model tiny --repeats 1 --cpu --no-memory --attention banded".split()
    assert "banded" in run([command, "benchmark", *ways], folder)
    assert run([python, "-m", "adaptive_span", "--version"], folder) == run([command, "--version"], folder)
