"""Numbered texts, kept on disk and mapped into memory.

A prepared corpus is a folder: `train.bin`, `valid.bin`, `test.bin` (ids in the smallest integer type that holds them),
`vocabulary.json` (symbols by id, or the text of a tokenizer.json) and `manifest.json` (where it came from, and
checksums). It appears whole or not at all. Whenever it is opened every byte is checked; a damaged one is made again.
"""

import hashlib
import json
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from adaptive_span.config.data_schema import DataConfig
from adaptive_span.config.data_sets import own
from adaptive_span.data import source
from adaptive_span.data.numbering import Texts, number_bytes, number_words
from adaptive_span.data.vocabulary import Vocabulary, of_content, tokenizer_of
from adaptive_span.errors import UserError
from adaptive_span.storage import strict_json
from adaptive_span.terminal.printing import print_line

MANIFEST, VOCABULARY = "manifest.json", "vocabulary.json"
RULES = ("symbols", "members", "ids", "line_ends", "unknown", "strip")  # of `DataConfig`, by which ids are given


class Damaged(Exception):
    """The reason why a folder is no prepared corpus. It never leaves this module."""


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, opened and checked."""

    directory: Path
    manifest: dict[str, Any]
    numbering: Vocabulary = field(repr=False)
    ids: dict[str, np.ndarray] = field(repr=False)  # by split, (n,), mapped into memory: processes share one copy

    @property
    def level(self) -> str:
        """What a token is: 'byte', 'word' or 'subword'."""
        return self.numbering.level

    @property
    def vocab_size(self) -> int:
        return len(self.numbering.symbols)

    @property
    def fingerprint(self) -> str:
        """The same for the same ids of the same symbols, and only then."""
        fingerprint: str = self.manifest["fingerprint"]
        return fingerprint

    @property
    def vocabulary(self) -> list[str]:
        return self.numbering.symbols

    def tokens(self, split: str) -> np.ndarray:
        """Return the ids of train, valid or test, (n,)."""
        return self.ids[split]

    def bytes_per_token(self, split: str) -> float:
        """Return how many bytes of text a token of a split stands for, by the mean. Of words it is not known."""
        about: dict[str, int] = self.manifest["splits"][split]
        return (about["tokens"] if self.level == "byte" else about["bytes"]) / about["tokens"]

    def is_published(self, config: DataConfig) -> bool:
        """Return whether the text is the whole published one, by its checksum, packed or not."""
        known = {config.sha256, config.unpacked_sha256} - {None}
        return not known.isdisjoint(str(self.manifest.get(key)) for key in ("source_sha256", "text_sha256"))

    def warnings(self, config: DataConfig) -> list[str]:
        """Return a sentence for each thing about the text that its user may not know."""
        found = []
        whole = config.unpacked_size in (None, self.manifest.get("text_bytes"))
        if config.file and config.sha256 and whole and not self.is_published(config):
            found.append(
                f"data.file={config.file} is not the published {config.name}, but a modified copy: its checksum "
                f"differs, and scores on it do not compare with published ones"
            )
        if number := self.manifest.get("unknown_words"):
            found.append(f"{number:,} different words of {source.described(config)} count as <unk>")
        if self.manifest.get("lossy"):
            found.append(
                f"the tokenizer does not give {source.described(config)} back as it is (case, white space, unknown "
                f"characters): bits per byte leave out what is lost, and compare with no other tokenizer's"
            )
        return found


def prepare(config: DataConfig, by_frequency: bool = False, vocabulary: Vocabulary | None = None) -> Corpus:
    """Return the corpus of a configuration, numbered first if it was not yet. One process works, the others wait.

    `by_frequency`: number words by falling frequency, as adaptive input and output need it, not by first appearance.
    `vocabulary`: number by it; raises `UserError` where it lacks symbols of the text.
    """
    if config.level == "subword" and vocabulary is None:
        vocabulary = tokenizer_of(config)
    try:
        own = _folder(config, by_frequency, None)
        directory = own if vocabulary is None else _folder(config, by_frequency, vocabulary)
        for folder in dict.fromkeys((own, directory)):
            corpus, _ = _opened(folder)
            if corpus and vocabulary in (None, corpus.numbering):
                return corpus
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.parent / f".{config.name}.lock"):
            corpus, problem = _opened(directory)
            if corpus is None:
                if problem:
                    print_line(f"the prepared corpus {directory} is damaged ({problem}), and is made again")
                _build(config, by_frequency, vocabulary, directory)
                corpus, problem = _opened(directory)
    except OSError as error:
        raise UserError(f"the corpus cannot be written to data.directory={config.directory} ({error})") from error
    if corpus is None:
        raise UserError(f"the corpus {directory} was damaged while it was written ({problem}); look after the disk")
    return corpus


def _folder(config: DataConfig, by_frequency: bool, vocabulary: Vocabulary | None) -> Path:
    """Return where the corpus is kept. It changes with whatever may change the ids, and is cheap to find."""
    if source.is_download(config):
        identity: list[Any] = [config.sha256, config.urls]
    elif config.origin == "stdlib":  # thousands of files, replaced only as a whole
        identity = [sysconfig.get_path("stdlib"), sys.version]
    else:
        stats = [(path, path.stat()) for path in source.files(config)]
        identity = [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    told: list[Any] = [config.level, config.split, by_frequency, identity] + ([vocabulary.digest] if vocabulary else [])
    meant = vars(DataConfig()) | own(config.name)  # before these keys existed, what is kept was named without them
    if changed := {key: value for key in RULES if (value := getattr(config, key)) != meant[key]}:
        told.append(changed)
    return Path(config.directory) / f"{config.name}-{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]}"


def _opened(directory: Path) -> tuple[Corpus | None, str | None]:
    """Return the corpus, checked to the last byte; or None, and what is damaged if there is a folder."""
    if not directory.exists():
        return None, None
    try:
        manifest, content = (_json(directory / name) for name in (MANIFEST, VOCABULARY))
        if not isinstance(manifest, dict) or not isinstance(content, list | str) or not content:
            raise Damaged(f"{MANIFEST} and {VOCABULARY} do not hold what they should")
        if manifest.get("fingerprint") != _fingerprint(content, manifest.get("splits")):
            raise Damaged(f"{MANIFEST} and {VOCABULARY} do not match")
        if manifest.pop("checksum", None) != _checksum(manifest):
            raise Damaged(f"the checksum of {MANIFEST} is wrong, or missing as in earlier versions")
        dtype = np.dtype(manifest["dtype"])
        ids = {split: _mapped(directory / f"{split}.bin", dtype, manifest["splits"][split]) for split in source.SPLITS}
    except RecursionError:  # JSON that is read but too deep to be written
        return None, f"{MANIFEST} cannot be read"
    except Damaged as damage:
        return None, str(damage)
    return Corpus(directory, manifest, of_content(manifest["level"], content), ids), None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise Damaged(f"{path.name} is missing") from None
    except (ValueError, RecursionError):  # text that is not UTF-8 or not JSON
        raise Damaged(f"{path.name} cannot be read") from None


def _mapped(path: Path, dtype: np.dtype, about: dict[str, Any]) -> np.ndarray:
    """Return the ids in a file, (n,), if it has the size and the checksum that the manifest says."""
    try:
        size = path.stat().st_size
        if size != about["tokens"] * dtype.itemsize:
            raise Damaged(f"{path.name} has {size:,} bytes in place of {about['tokens'] * dtype.itemsize:,}")
        ids = np.memmap(path, dtype=dtype, mode="r")
    except (FileNotFoundError, IsADirectoryError):
        raise Damaged(f"{path.name} is missing") from None
    if hashlib.sha256(ids.data).hexdigest() != about["sha256"]:
        raise Damaged(f"the checksum of {path.name} is wrong")
    return ids


def _build(config: DataConfig, by_frequency: bool, vocabulary: Vocabulary | None, directory: Path) -> None:
    """Make the folder, in place of a damaged one if there is one."""
    paths = source.files(config)
    building = directory.with_name(directory.name + ".building")
    shutil.rmtree(building, ignore_errors=True)  # what a killed process left
    building.mkdir()
    try:
        numbering, sizes, notes = _number(config, by_frequency, vocabulary, source.splits(config, paths), building)
        _describe(config, paths, building, numbering, sizes, notes)
        if directory.exists():
            shutil.rmtree(directory)
        os.rename(building, directory)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _number(
    config: DataConfig, by_frequency: bool, vocabulary: Vocabulary | None, texts: Texts, directory: Path
) -> tuple[Vocabulary, dict[str, int], dict[str, Any]]:
    """Write the ids. Returns their vocabulary, of subwords the bytes of each split, and what to warn of."""
    if config.level == "subword":
        from adaptive_span.data.encoding import number_subwords  # what an extra brings

        assert vocabulary is not None
        sizes, lossless = number_subwords(vocabulary, texts, directory)
        return vocabulary, sizes, {} if lossless else {"lossy": True}
    if config.level == "word":
        symbols, unknown = number_words(config, by_frequency, vocabulary, texts, directory)
    else:
        symbols, unknown = number_bytes(config, vocabulary, texts, directory)
    return Vocabulary(config.level, symbols), {}, {"unknown_words": unknown} if unknown else {}


def _describe(
    config: DataConfig,
    paths: list[Path],
    directory: Path,
    numbering: Vocabulary,
    sizes: dict[str, int],
    notes: dict[str, Any],
) -> None:
    """Write the vocabulary and the manifest."""
    size, content = len(numbering.symbols), numbering.content
    dtype = np.min_scalar_type(size - 1)
    splits = {
        split: {
            "tokens": (directory / f"{split}.bin").stat().st_size // dtype.itemsize,
            "sha256": _sha256([directory / f"{split}.bin"]),
            **({"bytes": sizes[split]} if sizes else {}),
        }
        for split in source.SPLITS
    }
    manifest = {
        "name": config.name,
        "level": config.level,
        "source": [str(path) for path in paths] if config.origin != "stdlib" else sysconfig.get_path("stdlib"),
        "source_sha256": _sha256(paths),
        "split_bytes": config.split,
        "splits": splits,
        "dtype": dtype.str,
        "vocab_size": size,
        "fingerprint": _fingerprint(content, splits),
    }
    manifest |= notes
    if config.file and config.unpacked_size:
        manifest["text_bytes"], manifest["text_sha256"] = source.unpacked(paths[0])
    strict_json.write(content, directory / VOCABULARY)
    strict_json.write(manifest | {"checksum": _checksum(manifest)}, directory / MANIFEST)


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _fingerprint(content: list[str] | str, splits: Any) -> str:
    return hashlib.sha256(json.dumps([content, splits]).encode()).hexdigest()


def _sha256(paths: list[Path]) -> str:
    """Return the checksum of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
