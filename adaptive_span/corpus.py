"""Text → token ids, numbered as the published checkpoints number them, kept on disk and mapped into memory.

A prepared corpus is a folder: `train.bin`, `valid.bin`, `test.bin` (ids in the smallest integer type that holds them),
`vocabulary.json` (symbols by id) and `manifest.json` (where it came from). It appears whole or not at all.
"""

import hashlib
import json
import os
import shutil
import sys
import sysconfig
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock

from adaptive_span import source
from adaptive_span.config import DataConfig
from adaptive_span.errors import UserError

EOS, UNKNOWN = "<eos>", "<unk>"
NEWLINE = 10
CHUNK = 1 << 20  # tokens


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, opened."""

    directory: Path
    manifest: dict[str, Any]

    @property
    def level(self) -> str:
        """What a token is: 'byte' or 'word'."""
        return self.manifest["level"]

    @property
    def vocab_size(self) -> int:
        return self.manifest["vocab_size"]

    @property
    def fingerprint(self) -> str:
        """The same for the same ids of the same symbols, and only then."""
        return self.manifest["fingerprint"]

    @property
    def vocabulary(self) -> list[str]:
        return json.loads((self.directory / "vocabulary.json").read_text(encoding="utf-8"))

    def tokens(self, split: str) -> np.ndarray:
        """The ids of train, valid or test, (n,), mapped into memory: processes share one copy."""
        return np.memmap(self.directory / f"{split}.bin", dtype=self.manifest["dtype"], mode="r")


def prepare(config: DataConfig, by_frequency: bool = False) -> Corpus:
    """The corpus of a configuration, numbered first if it was not yet. One process works, the others wait for it.

    `by_frequency`: number words by falling frequency, as adaptive input and output need it, not by first appearance.
    """
    directory = Path(config.directory) / f"{config.name}-{_key(config, by_frequency)}"
    if not directory.exists():
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(directory.parent / f".{config.name}.lock"):
                if not directory.exists():
                    _build(config, by_frequency, directory)
        except OSError as error:
            raise UserError(f"the corpus cannot be written to data.directory={config.directory} ({error})") from error
    return Corpus(directory, json.loads((directory / "manifest.json").read_text(encoding="utf-8")))


def _key(config: DataConfig, by_frequency: bool) -> str:
    """Changes with whatever may change the ids; cheap, for it is asked at every start."""
    if source.is_download(config):
        identity: list[Any] = [config.sha256, config.urls]
    elif config.name == "stdlib":  # thousands of files, replaced only as a whole
        identity = [sysconfig.get_path("stdlib"), sys.version]
    else:
        stats = [(path, path.stat()) for path in source.files(config)]
        identity = [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    told = [config.level, config.split, by_frequency, identity]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]


def _build(config: DataConfig, by_frequency: bool, directory: Path) -> None:
    paths = source.files(config)
    building = directory.with_name(directory.name + ".building")
    shutil.rmtree(building, ignore_errors=True)  # what a killed process left
    building.mkdir()
    try:
        texts = source.splits(config, paths)
        try:
            if config.level == "word":
                vocabulary, dtype = _number_words(config, by_frequency, texts, building)
            else:
                vocabulary, dtype = _number_bytes(config, texts, building)
        except source.DAMAGED as error:
            texts.throw(error)  # to where the name of the file is known
            raise
        _describe(config, paths, building, vocabulary, dtype)
        os.rename(building, directory)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _number_bytes(
    config: DataConfig, texts: Iterable[tuple[str, IO[bytes]]], directory: Path
) -> tuple[list[str], np.dtype]:
    """enwik8, text8: ids in order of first appearance in train; a line end is <eos>, and every split ends in one.
    Elsewhere all 256 bytes have an id, the byte itself, whatever train holds."""
    symbols: list[int] = []
    for split, stream in texts:
        text = stream.read()
        if config.name == "text8":
            text = text.strip(b" ")
        if not text:
            raise UserError(f"the {split} split is empty; give it some text")
        if config.name not in ("enwik8", "text8"):
            symbols = list(range(256))
            (directory / f"{split}.bin").write_bytes(text)
            continue
        ending = b"" if text[-1] == NEWLINE else b"\n"
        if split == "train":
            first = {byte: text.find(bytes([byte])) for byte in range(256)}  # memchr: faster than counting
            symbols = sorted((byte for byte in first if first[byte] >= 0), key=first.__getitem__)
            symbols += [] if NEWLINE in symbols else [NEWLINE]
        elif unknown := text.translate(None, bytes(symbols)):
            raise UserError(
                f"the {split} split holds the byte {unknown[0]} ({bytes(unknown[:1])!r}) at offset "
                f"{text.find(unknown[:1]):,}, which train does not; take a longer train split"
            )
        ids = bytes.maketrans(bytes(symbols), bytes(range(len(symbols))))
        with open(directory / f"{split}.bin", "wb") as file:
            file.write(text.translate(ids))
            file.write(ending.translate(ids))
    return [_symbol(byte, config.name) for byte in symbols], np.dtype(np.uint8)


def _symbol(byte: int, name: str) -> str:
    if name == "text8":
        return {NEWLINE: EOS, 32: "_"}.get(byte, chr(byte))
    return EOS if byte == NEWLINE and name == "enwik8" else str(byte)


def _number_words(
    config: DataConfig, by_frequency: bool, texts: Iterable[tuple[str, IO[bytes]]], directory: Path
) -> tuple[list[str], np.dtype]:
    """Ids in order of first appearance in train, or by falling count. Every line, a blank one too, ends in <eos>."""
    numbers: dict[str, int] = {}
    rank = np.arange(0)
    for split, text in texts:
        counts = _write_ids(_words(text), numbers, split, directory / f"{split}.first", config.name == "files")
        if split == "train":
            if config.name == "files" and UNKNOWN not in numbers:
                numbers[UNKNOWN] = len(numbers)
                counts.append(0)
            rank = np.arange(len(numbers))
            if by_frequency:  # of equally frequent words the one that appeared last comes first
                rank[np.lexsort((-rank, -np.array(counts)))] = np.arange(len(numbers))
    dtype = np.min_scalar_type(len(numbers) - 1)
    for split in source.SPLITS:
        first = directory / f"{split}.first"
        ids = np.memmap(first, dtype=np.int32, mode="r")
        with open(directory / f"{split}.bin", "wb") as file:
            for start in range(0, len(ids), CHUNK):
                file.write(rank[ids[start : start + CHUNK]].astype(dtype).tobytes())
        first.unlink()
    words = list(numbers)
    return [words[number] for number in np.argsort(rank)], dtype


def _words(text: IO[bytes]) -> Iterator[list[str]]:
    with TextIOWrapper(text, encoding="utf-8") as lines:
        for line in lines:
            yield [*line.split(), EOS]


def _write_ids(
    lines: Iterable[list[str]], numbers: dict[str, int], split: str, path: Path, spare_unknown: bool
) -> list[int]:
    """Numbers by first appearance, as int32; train adds to `numbers`. Returns how often each occurs."""
    counts = [0] * len(numbers)
    ids, written = array("i"), 0
    with open(path, "wb") as file:
        for words in lines:
            for word in words:
                number = numbers.get(word)
                if number is None:
                    if split == "train":
                        number = numbers[word] = len(numbers)
                        counts.append(0)
                    elif spare_unknown:
                        number = numbers[UNKNOWN]
                    else:
                        raise UserError(
                            f"the {split} split holds the word {word!r} at token {written + len(ids):,}, which train "
                            f"does not; take data=files data.level=word, which knows {UNKNOWN}"
                        )
                counts[number] += 1
                ids.append(number)
            if len(ids) >= CHUNK:
                ids.tofile(file)
                written, ids = written + len(ids), array("i")
        ids.tofile(file)
    if written + len(ids) == 0:
        raise UserError(f"the {split} split is empty; give it some text")
    return counts


def _describe(config: DataConfig, paths: list[Path], directory: Path, vocabulary: list[str], dtype: np.dtype) -> None:
    """Write the vocabulary and the manifest."""
    (directory / "vocabulary.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    splits = {
        split: {
            "tokens": (directory / f"{split}.bin").stat().st_size // dtype.itemsize,
            "sha256": _sha256([directory / f"{split}.bin"]),
        }
        for split in source.SPLITS
    }
    ids = json.dumps([vocabulary, splits])
    manifest = {
        "name": config.name,
        "level": config.level,
        "source": [str(path) for path in paths] if config.name != "stdlib" else sysconfig.get_path("stdlib"),
        "source_sha256": _sha256(paths),
        "split_bytes": config.split,
        "splits": splits,
        "dtype": dtype.str,
        "vocab_size": len(vocabulary),
        "fingerprint": hashlib.sha256(ids.encode()).hexdigest(),
    }
    (directory / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _sha256(paths: list[Path]) -> str:
    """Of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
