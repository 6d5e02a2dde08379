"""The page of `adaptive-span report`, opened in Chromium without a network."""

import json
import math
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from adaptive_span.cli import report
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError
from adaptive_span.reporting import scores
from adaptive_span.reporting.run_directory import FAILURE, TOKEN_LOSSES, write_config
from adaptive_span.reporting.tracking import Tracker
from adaptive_span.storage import strict_json
from tests.unit.config.test_config import composed

CHROMIUM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
HOSTILE = "</script><script>alert(1)</script><b>\"'&amp;"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("there is no Chromium in which to open the page: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page from the disk; nothing may go wrong in it, and nothing be asked of a network."""
    contexts, wrong, requests = [], [], []

    def open_page(path: Path, **how: Any) -> Page:
        context = browser.new_context(offline=True, **how)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html.drawn", state="attached")
        return page

    yield open_page
    assert wrong == []
    assert [address for address in requests if not address.startswith(("file:", "data:", "blob:"))] == []
    for context in contexts:
        context.close()


@cache
def composed_once(data: str) -> Config:
    return composed("tracking=none", f"data={data}")


def written(
    directory: Path, lines: int, seed: int = 1, data: str = "stdlib", layers: int = 2, heads: int = 4
) -> Config:
    """Write the files of a run that has logged so many lines, 10 steps apart, as a training does."""
    config = deepcopy(composed_once(data))
    config.model.num_layers, config.model.num_heads, config.train.seed = layers, heads, seed
    random.seed(seed)
    directory.mkdir(parents=True)
    write_config(config, directory)
    unit = "ppl" if config.data.level == "word" else "bpc"
    tracker = Tracker(directory, config, 0, None)
    for line in range(1, lines + 1):
        spans = [[32 + random.random() * line * (layer + 1) / 3 for _ in range(heads)] for layer in range(layers)]
        loss = {f"train/{unit}": 2 + 5 / line, "span/mean": 40.0, "span/max": 90.0, "tokens_per_second": 1000.0}
        tracker.log(10 * line, loss | ({f"valid/{unit}": 2.1 + 5 / line} if line % 10 == 0 else {}), spans)
    return config


def flat(spans: list[list[float]]) -> list[float]:
    return list(chain.from_iterable(spans))


def coloured(directory: Path, text: str) -> None:
    losses = {"split": "valid", "protocol": "exact", "step": 10, "level": "byte"}
    nats = [[0.1 * (place % 70)] for place in range(len(text))]
    strict_json.write(losses | {"texts": list(text), "nats": nats}, directory / TOKEN_LOSSES)


def made(*folders: Path) -> Path:
    report.main([str(folder) for folder in folders])
    return folders[0] / "report.html"


def test_a_run_on_a_page(launch, text, tmp_path, opened):
    run = tmp_path / "runs" / "short"
    launch(f"run.dir={run}")
    page = opened(made(run), viewport={"width": 1600, "height": 900})
    for what in ("finished after 24 steps", "learned spans", "launch.py", "peak memory"):
        assert page.get_by_text(what).first.is_visible(), what

    # Hovering shows a label, the slider changes the heat map and moves the line, the keyboard reads the text.
    page.locator("[data-chart=loss]").scroll_into_view_if_needed()
    page.locator("[data-chart=loss] .nsewdrag").hover()
    assert re.search(r"\d bpc", page.locator("[data-chart=loss] .hovertext").first.text_content())
    shown = "document.getElementById('heat').data[0].z.flat().map(length => 2 ** length)"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert page.evaluate(shown) == pytest.approx(flat(lines[-1]["spans"]), abs=0.5)
    page.locator("#moment").press("Home")
    assert page.evaluate(shown) == pytest.approx(flat(lines[0]["spans"]), abs=0.5)
    assert page.locator("#step").text_content() == f"{lines[0]['step']} of 24"

    pieces = page.evaluate("[...document.querySelectorAll('#pieces .t')].map(each => each.textContent)")
    assert "".join(pieces).replace("⏎", "") == (text / "valid.txt").read_bytes()[:2001].decode()
    page.locator("#pieces").press("ArrowRight")
    page.locator("#pieces").press("ArrowRight")
    losses = json.loads((run / TOKEN_LOSSES).read_text())
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    widths = page.locator(".main-svg").evaluate_all("all => all.map(each => each.getBoundingClientRect().width)")
    assert 0 < max(widths) < 680  # pixels between the margins of a sheet
    bits = round(losses["nats"][1][0], 3) / math.log(2)
    assert f"{bits:.2f} bits" in page.locator("#reading").text_content()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1600, "light")])
def test_a_page_for_everybody(width, scheme, tmp_path, opened):
    for seed, name in enumerate(("one", "two")):
        written(tmp_path / name, 12, seed)
        coloured(tmp_path / name, "A text\nto read ")
    page = opened(made(tmp_path), viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == []


def test_ten_long_runs_fit_into_a_small_page(tmp_path, opened):
    for seed in range(10):
        written(tmp_path / "sweep" / str(seed), 500, seed, layers=12, heads=8)
        coloured(tmp_path / "sweep" / str(seed), 2000 * "é")
    file = made(tmp_path / "sweep")
    assert file.stat().st_size < 8 << 20
    page = opened(file)
    assert page.locator("#moment").get_attribute("max") == "49"
    before = page.evaluate("document.getElementById('heat').data[0].z")
    page.locator("#run").select_option(label="9 (seed=9)")
    assert page.evaluate("document.getElementById('heat').data[0].z.length") == len(before) == 12


def test_names_are_shown_and_not_run(tmp_path, opened):
    folder = tmp_path / HOSTILE.replace("/", "⁄")
    config = written(folder / "<script>alert(1)<", 12)
    written(folder / "%{x}<b>other", 12, 2)
    config.data.name = config.model.name = config.run.dir = HOSTILE
    run = folder / "<script>alert(1)<"
    write_config(config, run)
    (run / FAILURE).write_text(HOSTILE)
    coloured(run, HOSTILE)
    start = {"started": HOSTILE, "step": 0, "command": HOSTILE, "commit": HOSTILE, "changed": None, "python": HOSTILE}
    start |= {"packages": {HOSTILE: HOSTILE}, "device": HOSTILE, "processes": 1, "gpus": [HOSTILE], "cuda": HOSTILE}
    (run / "environment.jsonl").write_text(json.dumps(start | {"cpu": HOSTILE, "system": HOSTILE}) + "\n")
    score = {"splits": {"valid": {"bpc": 1.0}}, "protocol": HOSTILE, "corpus": "1", "step": 5, "spans": [[32.0]]}
    scores.write_other(score, HOSTILE, run)

    file = made(folder)
    source = file.read_text()
    assert "alert(1)</script>" not in source
    assert source.count("</script>") == 3
    page = opened(file)
    assert page.locator("b", has_text="other").count() == 0
    legend = page.locator("[data-chart=loss] .legendtext").all_text_contents()
    assert sorted(text[:15] for text in legend) == ["%{x}<b>other (n", "<script>alert(1"]
    page.locator("#run").select_option(index=1)
    pieces = page.evaluate("[...document.querySelectorAll('#pieces .t')].map(each => each.textContent)")
    assert "".join(pieces) == HOSTILE
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.locator("code", has_text=HOSTILE).is_visible()
    assert page.get_by_text(HOSTILE, exact=True).count() >= 12


def test_runs_that_do_not_go_together(tmp_path, opened):
    """Bytes and words, one that fails before it logs, one that still writes its last line, one from before spans."""
    total = written(tmp_path / "bytes", 30).train.total_steps
    written(tmp_path / "words", 3, data="wikitext103", layers=3)
    shutil.copytree(tmp_path / "words", tmp_path / "failed")
    (tmp_path / "failed" / "metrics.jsonl").unlink()
    (tmp_path / "failed" / FAILURE).write_text("there is no such text")
    with open(tmp_path / "bytes" / "metrics.jsonl", "a") as file:
        file.write('{"step": 310, "train/b')
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "bytes", old)
    lines = (json.loads(line) for line in (old / "metrics.jsonl").read_text().splitlines()[:-1])
    (old / "metrics.jsonl").write_text(
        "".join(json.dumps(line | {"spans": None}).replace(', "spans": null', "") + "\n" for line in lines)
    )

    scores.write({"spans": [[32.0, 33.0, 34.0, 35.0], [36.0, 37.0, 38.0, 39.0]]}, old)

    page = opened(made(tmp_path))
    assert page.locator("[data-chart=loss]").evaluate_all("all => all.map(each => each.dataset.unit)") == ["bpc", "ppl"]
    assert page.get_by_text("do not compare").is_visible()
    for what in ("there is no such text", f"300 of {total} steps so far", "no numbers yet"):
        assert page.get_by_text(what).first.is_visible() or page.get_by_text("failed after step 0").count(), what

    def choose(name: str) -> None:
        page.locator("#run").select_option(index=page.locator("#run option").all_text_contents().index(name))

    choose("failed")
    assert page.locator("#no-spans").is_visible()
    assert page.locator("#no-text").is_visible()
    assert not page.locator("#heat").is_visible()
    choose("old")
    assert page.evaluate("document.getElementById('heat').data[0].customdata") == [[32, 33, 34, 35], [36, 37, 38, 39]]
    assert page.locator("#no-time").is_visible()
    assert not page.locator("#evolution").is_visible()
    choose("bytes")
    assert page.locator("#evolution").is_visible()


def test_forty_runs(tmp_path, opened):
    for seed in range(40):
        written(tmp_path / str(seed), 3, seed)
    page = opened(made(tmp_path), viewport={"width": 360, "height": 800})
    names = page.locator("#run option").all_text_contents()
    assert names == [f"{seed} (seed={seed})" for seed in range(40)]
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_what_is_no_run_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "best.pt").write_bytes(b"weights")
    written(tmp_path / "run", 2)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    for folder, sentence in (
        ("empty", "holds no run that has begun"),
        ("best.pt", "is a file"),
        ("none", "there is no folder"),
    ):
        with pytest.raises(UserError, match=sentence):
            made(tmp_path / folder)
    (tmp_path / "run" / "metrics.jsonl").write_text("{broken\n" + lines)
    with pytest.raises(UserError, match=r"line 1 of .* is damaged"):
        made(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text(lines)
    with pytest.raises(UserError, match="is a folder"):
        report.main([str(tmp_path / "run"), "--out", str(tmp_path)])
