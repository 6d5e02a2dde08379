"""Where a text comes from: the machine's own standard library, a file, or a download that is checked."""

import codecs
import gzip
import hashlib
import io
import lzma
import os
import struct
import sysconfig
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from adaptive_span.config.data_schema import DataConfig
from adaptive_span.data.download import fetch, is_html
from adaptive_span.errors import UserError
from adaptive_span.hardware import machine

SPLITS = ("train", "valid", "test")
# All that zipfile, gzip and lzma raise for bytes that somebody has changed.
DAMAGED = (
    zipfile.BadZipFile, lzma.LZMAError, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError,
    OverflowError, MemoryError, LookupError,
)  # fmt: skip
MOST = 200  # times its packed size: more than any text unpacks to
PACKED = (".gz", ".xz", ".zip")


def is_download(config: DataConfig) -> bool:
    return config.origin == "download" and config.file is None


def files(config: DataConfig) -> list[Path]:
    """Return the files that the text is in, which must be there. A download is fetched first."""
    match config.origin:
        case "stdlib":
            return _standard_library()
        case "path":
            return _own_files(Path(config.path or ""))
    path = _download(config) if is_download(config) else _existing(Path(config.file or ""), f"data.file={config.file}")
    if config.members and path.suffix != ".zip":
        raise UserError(f"{path} is no .zip, of which data.members={config.members} are files; give one")
    return [path]


def described(config: DataConfig) -> str:
    """Return the text as its user named it."""
    where = f" data.path={config.path}" if config.path else f" data.file={config.file}" if config.file else ""
    return f"data={config.name}{where}"


def splits(config: DataConfig, paths: list[Path]) -> Generator[tuple[str, str, IO[bytes]], None, None]:
    """Yield train, valid and test, each with the name of its text, as streams of bytes to be read in this order."""
    if config.origin == "stdlib":
        whole = b"".join(path.read_bytes() for path in paths)
        yield from _cut(io.BytesIO(whole), "the standard library", config)
    elif len(paths) == len(SPLITS):
        for split, path in zip(SPLITS, paths, strict=True):
            with opened(path) as text:
                yield split, str(path), text
    elif len(config.members) == len(SPLITS):
        for split, member in zip(SPLITS, config.members, strict=True):
            with opened(paths[0], member) as text:
                yield split, str(paths[0]), text
    else:
        with opened(paths[0], *config.members) as text:
            yield from _cut(text, str(paths[0]), config)


def unpacked(path: Path) -> tuple[int, str]:
    """Return the size and the sha256 of the one text that a raw or packed file holds."""
    digest, size = hashlib.sha256(), 0
    with opened(path) as text:
        while block := text.read(1 << 20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def not_utf8(name: str, split: str, offset: int, start: bytes) -> UserError:
    """Return the error for a text whose byte at `offset` of a split, `start[0]`, cannot be read as UTF-8."""
    where = f"{name}: the byte 0x{start[0]:02X} at offset {offset:,} of {split}"
    if offset == 0 and start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        kind = "UTF-32" if start[:4] == b"\xff\xfe\0\0" else "UTF-16"
        return UserError(
            f"{where} begins the mark of {kind}, and text is read as UTF-8; convert the file, with iconv -f "
            f"{kind.lower()} -t utf-8, or take data.level=byte"
        )
    return UserError(
        f"{where} is not UTF-8, as which text is read; convert the file, with iconv -f latin1 -t utf-8 if it is "
        f"Latin-1, or take data.level=byte"
    )


@contextmanager
def opened(path: Path, member: str = "") -> Iterator[IO[bytes]]:
    """Give the unpacked bytes of a raw, .zip, .gz or .xz file; of a zip the one file, or the one named `member`."""
    with ExitStack() as stack:
        text: IO[bytes] = stack.enter_context(open(path, "rb"))
        if path.suffix not in PACKED:
            yield text
            return
        with _damage_named(path):
            if path.suffix == ".gz":
                text = stack.enter_context(gzip.GzipFile(fileobj=text))  # type: ignore[arg-type]
            elif path.suffix == ".xz":
                text = stack.enter_context(lzma.LZMAFile(text))
            else:
                archive = stack.enter_context(zipfile.ZipFile(text))
                names = [n for n in archive.namelist() if not n.endswith("/") and n.endswith(member)]
                if len(names) != 1:
                    raise UserError(f"{path} holds {len(names)} files {member or ''} where one was expected: {names}")
                text = stack.enter_context(archive.open(names[0]))
        yield io.BufferedReader(_Unpacked(text, path), 1 << 20)


class _Unpacked(io.RawIOBase):
    """Unpack as much as is read. Raises `UserError` for damage, and for a small file that becomes a huge text."""

    def __init__(self, packed: IO[bytes], path: Path):
        self.packed, self.path = packed, path
        self.left = MOST * path.stat().st_size + (16 << 20)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _damage_named(self.path):
            block = self.packed.read(len(buffer))
        self.left -= len(block)
        if self.left < 0:
            raise UserError(
                f"{self.path} unpacks to more than {MOST} times its size, as no text does; unpack it yourself if you "
                f"trust it, and give the raw file"
            )
        buffer[: len(block)] = block
        return len(block)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise UserError(f"{path} is {_what_is_wrong(path, error)}; fetch it again") from None


def _what_is_wrong(path: Path, error: Exception) -> str:
    if is_html(path):
        return f"an HTML page and not a {path.suffix} file"
    return f"damaged or not a {path.suffix or 'text'} file ({error})"


def _cut(text: IO[bytes], name: str, config: DataConfig) -> Iterator[tuple[str, str, IO[bytes]]]:
    """Yield the consecutive parts that `data.split` asks for, and ignore what follows them; or 90, 5 and 5 %."""
    if config.split is None:
        parts = _shares(text.read(), config.level != "byte")
        _refuse_another(parts, name, config)
    else:
        parts = _of_sizes(text, config.split, name, config)
    if config.level == "subword":
        parts = _of_whole_characters(parts)
    yield from ((split, name, io.BytesIO(part)) for split, part in zip(SPLITS, parts, strict=True))


def _shares(whole: bytes, by_lines: bool) -> list[bytes]:
    """Return 90, 5 and 5 % of a text: of bytes exactly, else up to the end of a line, or of a word without lines."""
    sizes = [len(whole) * part // 20 for part in (18, 1, 1)]
    cuts = [sizes[0], sizes[0] + sizes[1]]
    if by_lines:
        cuts = [whole.find(b"\n", cut) + 1 or whole.find(b" ", cut) + 1 or cut for cut in cuts]
    return [whole[: cuts[0]], whole[cuts[0] : cuts[1]], whole[cuts[1] : len(whole) if by_lines else sum(sizes)]]


def _of_sizes(text: IO[bytes], sizes: list[int], name: str, config: DataConfig) -> list[bytes]:
    """Return consecutive parts of so many bytes. Raises `UserError` where the text is shorter, or another one."""
    memory = machine.memory()
    if memory is not None and sum(sizes) > memory:
        raise UserError(
            f"data.split={sizes} asks for {sum(sizes) / 1e9:,.1f} GB of text, but there are {memory / 1e9:,.1f} GB of "
            f"memory; ask for less"
        )
    parts = [text.read(size) for size in sizes]
    _refuse_another(parts, name, config)
    if sum(map(len, parts)) < sum(sizes):
        raise UserError(
            f"{name} holds {sum(map(len, parts)):,} bytes, but data.split={sizes} asks for {sum(sizes):,}; ask for "
            f"less, or give a whole file"
        )
    return parts


def _of_whole_characters(parts: list[bytes]) -> list[bytes]:
    """Return parts that end where a character of UTF-8 does. The next one begins with what is moved over."""
    moved, whole = b"", []
    for part in parts:
        part = moved + part
        end = part[-3:]  # of which a character that is cut off has at most all
        _, used = codecs.utf_8_decode(end, "replace", False)
        cut = len(part) - len(end) + used
        moved = part[cut:]
        whole.append(part[:cut])
    return whole


def _refuse_another(parts: list[bytes], name: str, config: DataConfig) -> None:
    """Raise `UserError` for what cannot be the text that the configuration names, nor a piece of it."""
    start = 0
    for part in parts:
        if config.symbols and (other := part.rstrip(b"\n").translate(None, config.symbols.encode())):
            raise UserError(
                f"{name} is not {config.name}: it holds the byte {other[0]} ({other[:1]!r}) at offset "
                f"{start + part.find(other[:1]):,}, and {config.name} holds only {config.symbols!r}; give "
                f"data.file=PATH of the one that is, or the data that this is"
            )
        start += len(part)
    if config.holds and not any(config.holds.encode() in part for part in parts):
        raise UserError(
            f"{name} is not {config.name}, nor a piece of it: it holds no {config.holds!r}; give "
            f"data.file=PATH of the one that is, or the data that this is"
        )


def _standard_library() -> list[Path]:
    """Return the standard library's own sources, without tests and what an installation generates.

    Their order is mixed, and depends on their names alone, so that each split holds a bit of everything.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    found = [path.relative_to(root) for path in root.rglob("*.py")]
    found = [p for p in found if not skipped & set(p.parts) and not p.name.startswith("_sysconfigdata")]
    if not found:
        raise UserError(f"this Python has no library sources in {root}; give data=files data.path=DIR")
    return [root / path for path in sorted(found, key=lambda path: hashlib.sha256(path.as_posix().encode()).digest())]


def _own_files(path: Path) -> list[Path]:
    """Return the one file that a path names, or the three of a folder."""
    if path.is_dir() or not path.exists():
        return [_text_file(path, split) for split in SPLITS]
    return [_existing(path, f"data.path={path}")]


def _text_file(directory: Path, split: str) -> Path:
    names = [*(f"{split}.txt{ending}" for ending in ("", ".gz", ".xz")), f"wiki.{split}.tokens"]
    for name in names:
        if (directory / name).is_file():
            return _existing(directory / name, f"{directory / name}")
    there = "has no" if directory.is_dir() else "is no folder with"
    raise UserError(
        f"data.path={directory} {there} {split}.txt (or {', '.join(names[1:])}), nor one text; put it there"
    )


def _existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise UserError(f"{what} is not a file; give the path of one that is there")
    if path.stat().st_size == 0:
        raise UserError(f"{what} is empty; give a file with text in it")
    if not os.access(path, os.R_OK):
        raise UserError(f"{what} may not be read (permission denied); change that, or give another")
    return path


def _download(config: DataConfig) -> Path:
    """Return the verified download, from the first address that gives it. An interrupted one is resumed."""
    path = Path(config.directory) / "downloads" / Path(config.urls[0]).name
    if path.exists():
        return path
    try:
        fetch(config.urls, path, config.size, config.sha256)
    except UserError as error:
        raise UserError(
            f"data={config.name} could not be downloaded ({error}); fetch it on a machine with internet and give "
            f"data.file=PATH"
        ) from None
    return path
