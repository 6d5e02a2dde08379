"""Text becomes the ids that the published checkpoints expect; downloads are checked; what is wrong is told."""

import gzip
import hashlib
import json
import lzma
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.data_sets import own
from adaptive_span.data.corpus import prepare
from adaptive_span.errors import UserError
from tests.conftest import ROOT, SHARED

AS_ENWIK8: dict[str, Any] = {"name": "enwik8", "ids": "appearance", "line_ends": "eos"}
EXPECTED = SHARED / "data" / "expected_ids_original_code.json"
CORPORA = {
    "enwik8_4M": own("enwik8") | {"file": "enwik8_first_4154399.xz", "split": [3_600_000, 200_000, 200_000]},
    "text8_3M": own("text8") | {"file": "text8_first_3010294.xz", "split": [2_700_000, 150_000, 150_000]},
    "wikitext-2": {"name": "files", "path": "wikitext-2", "level": "word"},
    "wikitext-2_sorted": {"name": "files", "path": "wikitext-2", "level": "word"},
}


@pytest.mark.skipif(not EXPECTED.exists(), reason=f"{EXPECTED} is not on this machine")
@pytest.mark.parametrize("name", CORPORA)
def test_the_published_numbering(name, tmp_path):
    settings = dict(CORPORA[name])
    for key in settings.keys() & {"file", "path"}:
        settings[key] = str(SHARED / "data" / settings[key])
    corpus = prepare(DataConfig(directory=str(tmp_path), **settings), by_frequency=name.endswith("_sorted"))
    expected = json.loads(EXPECTED.read_text())[name]
    symbols = "\n".join(corpus.vocabulary).encode()
    assert hashlib.sha256(symbols).hexdigest() == expected["vocab_sha256_newline_joined"]
    for split, about in expected["splits"].items():
        ids = corpus.tokens(split).astype("<i4")
        assert len(ids) == about["tokens"]
        assert hashlib.sha256(ids.tobytes()).hexdigest() == about["ids_sha256_le_int32"]
    smallest = "|u1" if corpus.vocab_size <= 256 else "<u2"
    assert corpus.manifest["dtype"] == smallest


def write(directory: Path, train: str, valid: str, test: str) -> DataConfig:
    for split, text in (("train", train), ("valid", valid), ("test", test)):
        (directory / f"{split}.txt").write_text(text, encoding="utf-8")
    return DataConfig(name="files", path=str(directory), directory=str(directory / "data"))


def test_words_by_hand(tmp_path):
    config = write(tmp_path, "b a\n\na c b b\n", "a new a\n", "c")
    config.level = "word"
    corpus = prepare(config)
    assert corpus.vocabulary == ["b", "a", "<eos>", "c", "<unk>"]
    assert corpus.tokens("train").tolist() == [0, 1, 2, 2, 1, 3, 0, 0, 2]
    assert corpus.tokens("valid").tolist() == [1, 4, 1, 2]
    assert corpus.tokens("test").tolist() == [3, 2]
    assert prepare(config, by_frequency=True).vocabulary == [
        "<eos>",
        "b",
        "a",
        "c",
        "<unk>",
    ]  # 3 3 2 1 0 times; of two 3s the later first


def test_text8_by_hand(tmp_path):
    (tmp_path / "text").write_bytes(b" ab a b ba rest")
    config = DataConfig(**AS_ENWIK8, strip=True, symbols="ab ", file=str(tmp_path / "text"), split=[5, 3, 3])
    config.directory = str(tmp_path / "data")
    corpus = prepare(config)
    assert corpus.vocabulary == ["a", "b", "_", "<eos>"]
    assert [corpus.tokens(split).tolist() for split in ("train", "valid", "test")] == [
        [0, 1, 2, 0, 3],
        [1, 3],
        [1, 0, 3],
    ]


@given(st.binary(min_size=1, max_size=60), st.booleans())
def test_bytes_are_numbered_as_they_appear(tmp_path_factory, text, named_enwik8):
    directory = tmp_path_factory.mktemp("bytes")
    if named_enwik8:
        (directory / "text").write_bytes(3 * text)
        config = DataConfig(**AS_ENWIK8, file=str(directory / "text"), split=[len(text)] * 3)
    else:
        for split in ("train", "valid", "test"):
            (directory / f"{split}.txt").write_bytes(text)
        config = DataConfig(name="files", path=str(directory))
    config.directory = str(directory / "data")
    corpus = prepare(config)
    symbols = [10 if symbol == "<eos>" else int(symbol) for symbol in corpus.vocabulary]
    decoded = bytes(symbols[number] for number in corpus.tokens("test"))
    if named_enwik8:
        assert decoded == text + (b"" if text.endswith(b"\n") else b"\n")
        assert symbols == list(dict.fromkeys(decoded))
    else:
        assert decoded == text
        assert symbols == list(range(256))


def test_a_text_may_be_packed_and_longer_than_its_splits(tmp_path):
    text = b"some text, packed in four ways\n" * 40
    (tmp_path / "raw").write_bytes(text)
    with gzip.open(tmp_path / "text.gz", "wb") as file:
        file.write(text)
    with lzma.open(tmp_path / "text.xz", "wb") as file:
        file.write(text)
    with zipfile.ZipFile(tmp_path / "text.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text", text)
    fingerprints = set()
    for name in ("raw", "text.gz", "text.xz", "text.zip"):
        config = DataConfig(**AS_ENWIK8, file=str(tmp_path / name), split=[900, 100, 50])
        config.directory = str(tmp_path / "data")
        fingerprints.add(prepare(config).fingerprint)
    assert len(fingerprints) == 1


def test_the_standard_library_is_a_corpus(tmp_path):
    corpus = prepare(DataConfig(name="stdlib", source="stdlib", directory=str(tmp_path)))
    sizes = [len(corpus.tokens(split)) for split in ("train", "valid", "test")]
    assert sizes[0] > 1_000_000
    assert sizes[1] / sum(sizes) == pytest.approx(0.05, abs=1e-3)
    assert b"def __init__(self" in corpus.tokens("train").tobytes()
    assert isinstance(corpus.tokens("train"), np.memmap)


def test_of_two_processes_one_prepares_and_the_other_waits(tmp_path):
    config = write(tmp_path, "one two\n" * 50_000, "one\n", "two\n")
    code = (
        "from adaptive_span.config.data_schema import DataConfig; from adaptive_span.data.corpus import prepare\n"
        f"print(prepare(DataConfig(name='files', level='word', path={config.path!r}, directory={config.directory!r})))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert outputs[0] == outputs[1] != ""
    assert len([path for path in Path(config.directory).iterdir() if path.is_dir()]) == 1


# Downloads, from a real server on this machine.

PAYLOAD = b"a text to be fetched, long enough to be cut in two\n" * 200


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Range"]))  # type: ignore[attr-defined]
        if self.path == "/missing.gz":
            self.send_error(404)
            return
        body, status = gzip.compress(PAYLOAD, mtime=0), 200
        if self.path == "/page.gz":
            body = b"<!DOCTYPE html><html>please log in</html>"
        wanted = self.headers["Range"]
        if wanted and self.path == "/text.gz":
            body, status = body[int(wanted.removeprefix("bytes=").removesuffix("-")) :], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def download(server: ThreadingHTTPServer, directory: Path, *names: str) -> DataConfig:
    body = gzip.compress(PAYLOAD, mtime=0)
    return DataConfig(
        **AS_ENWIK8,
        split=[900, 100, 50],
        directory=str(directory),
        urls=[f"http://127.0.0.1:{server.server_port}/{name}" for name in names],
        size=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
    )


def test_a_download_is_fetched_once_from_the_first_address_that_works(server, tmp_path):
    config = download(server, tmp_path, "missing.gz", "page.gz", "text.gz")
    corpus = prepare(config)
    assert prepare(config).fingerprint == corpus.fingerprint
    assert [path for path, _ in server.asked] == ["/missing.gz", "/page.gz", "/text.gz"]


@pytest.mark.parametrize(("name", "asked"), [("text.gz", 1), ("whole.gz", 2)])
def test_a_broken_download_goes_on_or_starts_again(name, asked, server, tmp_path):
    """The second address ignores what is asked for and sends the whole file again."""
    config = download(server, tmp_path, name)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / f"{name}.part").write_bytes(gzip.compress(PAYLOAD, mtime=0)[:50])
    assert len(prepare(config).tokens("train")) == 901
    assert server.asked[0] == (f"/{name}", "bytes=50-")
    assert len(server.asked) == asked


def test_a_download_that_is_not_the_file_is_refused(server, tmp_path):
    config = download(server, tmp_path, "page.gz", "missing.gz", "text.gz")
    config.sha256 = 64 * "0"
    with pytest.raises(UserError) as refused:
        prepare(config)
    told = str(refused.value)
    assert "page.gz: gave an HTML page in place of the file" in told
    assert "missing.gz: 404" in told
    assert "text.gz: gave a file with sha256" in told
    assert f"where {64 * '0'} was expected" in told
    assert "give data.file=PATH" in told
    assert not list((tmp_path / "downloads").iterdir())


def refused(**settings: object) -> str:
    with pytest.raises(UserError) as error:
        prepare(DataConfig(**settings))  # type: ignore[arg-type]
    directory = Path(str(settings["directory"]))
    if directory.is_dir():
        assert [path.name for path in directory.iterdir() if not path.name.endswith(".lock")] == []
    return str(error.value)


def test_what_is_wrong_with_a_text_is_told(tmp_path):
    where = {"directory": str(tmp_path / "data")}
    assert "is no folder with train.txt" in refused(name="files", path=str(tmp_path / "nowhere"), **where)
    write(tmp_path, "text", "", "text")
    assert "valid.txt is empty" in refused(name="files", path=str(tmp_path), **where)
    (tmp_path / "valid.txt").unlink()
    assert "has no valid.txt" in refused(name="files", path=str(tmp_path), **where)
    missing = refused(**AS_ENWIK8, file=str(tmp_path / "missing"), split=[1, 1, 1], **where)
    assert missing.startswith("data.file=")
    assert "is not a file" in missing
    (tmp_path / "short").write_bytes(b"0123456789")
    short = refused(**AS_ENWIK8, file=str(tmp_path / "short"), split=[8, 2, 1], **where)
    assert "holds 10 bytes, but data.split=[8, 2, 1] asks for 11" in short
    unknown = refused(**AS_ENWIK8, file=str(tmp_path / "short"), split=[5, 3, 2], **where)
    assert "the valid split holds the byte 53 (b'5') at offset 0, which train does not" in unknown
    (tmp_path / "page.zip").write_bytes(b"<html>not found</html>")
    assert "is an HTML page" in refused(**AS_ENWIK8, file=str(tmp_path / "page.zip"), split=[1, 1, 1], **where)
    (tmp_path / "cut.xz").write_bytes(lzma.compress(bytes(range(256)) * 99)[:60])
    assert "is damaged" in refused(**AS_ENWIK8, file=str(tmp_path / "cut.xz"), split=[900, 9, 9], **where)
    assert "cannot be written" in refused(name="stdlib", source="stdlib", directory="/proc/data")


def test_words_that_train_lacks_are_refused_where_none_are_expected(tmp_path):
    with zipfile.ZipFile(tmp_path / "wikitext.zip", "w") as archive:
        for split, text in (("train", "a b\n"), ("valid", "b\n"), ("test", "a\nb new\n")):
            archive.writestr(f"wikitext-103/wiki.{split}.tokens", text)
    told = refused(**own("wikitext103"), file=str(tmp_path / "wikitext.zip"), directory=str(tmp_path / "data"))
    assert "the test split holds the word 'new' at token 3, which train does not" in told


def test_the_command_line_refuses_in_the_same_words(tmp_path):
    words = [sys.executable, str(ROOT / "launch.py"), "data=enwik8", "data.file=nowhere", "tracking=none"]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.strip() == "error: data.file=nowhere is not a file; give the path of one that is there"
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
