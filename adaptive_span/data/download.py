"""Files from the internet: the first address that gives what is expected; an interrupted download goes on."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pooch
import requests

from adaptive_span.errors import UserError

BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0"}  # one host insists


def fetch(urls: Sequence[str], path: Path, size: int | None = None, sha256: str | None = None) -> None:
    """Put the file at `path`, with a progress bar on a terminal. It appears there whole and verified, or not at all.

    Raises `UserError` with what went wrong at each address.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in urls:
        try:
            _fetch(url, path, size, sha256)
            return
        except requests.ConnectionError:
            failures.append(f"{url} cannot be reached")
        except (requests.RequestException, UserError) as error:
            failures.append(f"{url}: {error}")
    raise UserError("; ".join(failures))


def is_html(path: Path) -> bool:
    """Whether a server answered with a page in place of a file."""
    with open(path, "rb") as file:
        return file.read(1024).lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _fetch(url: str, path: Path, size: int | None, sha256: str | None) -> None:
    part = path.with_name(path.name + ".part")
    size = _announced_size(url) if size is None else size
    for resuming in (size is not None, False):  # what a server made of a resumed download is not always the file
        have = part.stat().st_size if resuming and part.exists() else 0
        if not have or have != size:
            headers = BROWSER | ({"Range": f"bytes={have}-"} if have else {})
            download = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), headers=headers, timeout=30)
            with open(part, "ab" if have else "wb") as file:
                download(url, file, None)
        problem = _problem(part, size, sha256)
        if problem is None:
            os.replace(part, path)
            return
        part.unlink()
        if not have:
            raise UserError(problem)


def _announced_size(url: str) -> int | None:
    answer = requests.head(url, headers=BROWSER, timeout=30, allow_redirects=True)
    length = answer.headers.get("Content-Length") if answer.ok else None
    return int(length) if length else None


def _problem(path: Path, size: int | None, sha256: str | None) -> str | None:
    if is_html(path):
        return "gave an HTML page in place of the file"
    if size is not None and path.stat().st_size != size:
        return f"gave {path.stat().st_size:,} bytes where {size:,} were expected"
    if sha256 is not None and (found := pooch.file_hash(str(path))) != sha256:
        return f"gave a file with sha256 {found} where {sha256} was expected"
    return None
