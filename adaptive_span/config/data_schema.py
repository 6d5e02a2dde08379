"""Define the keys of `data`: the text."""

from dataclasses import dataclass, field
from os.path import isfile
from typing import Annotated

from adaptive_span.config.checks import MISSING, OneOf, Pattern, check
from adaptive_span.config.kinds import Count, Path
from adaptive_span.errors import UserError

IDS = ("auto", "appearance", "frequency")
LEVELS = ("byte", "word", "subword")
LINE_ENDS = ("auto", "eos", "plain")
SOURCES = ("auto", "download", "path", "stdlib")
UNKNOWNS = ("unk", "refuse")
Sha256 = Annotated[str, Pattern("[0-9a-f]{64}", "64 digits of 0-9 and a-f")]
Address = Annotated[str, Pattern("https?://[^/]+/.*[^/]", "the address of a file, like https://host/text.zip")]
Name = Annotated[str, Pattern(r"\w[\w.-]{0,49}", "a name of at most 50 letters, digits, ., - and _")]


@dataclass
class DataConfig:
    """Say where the text comes from and how it becomes token ids (see `corpus.py`)."""

    name: Name = MISSING
    """Name of the text. It stands in the names of runs and of numbered texts."""
    level: Annotated[str, OneOf(LEVELS)] = "byte"
    """What a token is: a byte, a word between white space, or what the tokenizer of `data.tokenizer` makes of the
    text."""
    file: Path | None = None
    """A local copy of a downloadable text: raw, .zip, .gz or .xz. null: download it."""
    path: Path | None = None
    """Your own text. A folder that holds train.txt, valid.txt and test.txt, or these as .gz or .xz, or
    wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens. Or one file, raw or packed, which is split 90/5/5."""
    split: list[Count] | None = None
    """Bytes of train, valid and test, taken in this order from the start of the file. null: 90 %, 5 % and 5 %, unless
    the splits are files."""
    directory: Path = "data"
    """Folder where downloads and numbered texts are kept."""
    urls: list[Address] = field(default_factory=list)
    """Addresses of the download, tried in this order."""
    size: Count | None = None
    """Size of the download, in bytes. null: not checked."""
    sha256: Sha256 | None = None
    """SHA-256 of the download. null: not checked."""
    unpacked_size: Count | None = None
    """Size of the text in the download, in bytes. null: not checked."""
    unpacked_sha256: Sha256 | None = None
    """SHA-256 of the text in the download. null: not checked."""
    symbols: str | None = None
    """All the characters that the text may consist of. null: any."""
    holds: str | None = None
    """A string that every part of the text holds. null: not checked."""
    source: Annotated[str, OneOf(SOURCES)] = "auto"
    """Where the text comes from. download: `data.urls`, or the copy `data.file`. path: `data.path`. stdlib: the sources
    of this Python's standard library. auto: path where `data.path` alone is given, else download."""
    members: list[str] = field(default_factory=list)
    """Files of the .zip, by the ends of their names: those of train, valid and test, or one. Empty: its only file."""
    ids: Annotated[str, OneOf(IDS)] = "auto"
    """How tokens are numbered. appearance: by their first one in train. frequency: words by how often train holds them,
    which `model.cutoffs` always need. auto: bytes by their value, words by appearance."""
    line_ends: Annotated[str, OneOf(LINE_ENDS)] = "auto"
    """What a line end becomes. eos: the token <eos>, also at the end of each split. plain: of bytes a byte, of words
    nothing. auto: eos of words, plain of bytes."""
    unknown: Annotated[str, OneOf(UNKNOWNS)] = "unk"
    """What becomes of words that train lacks. unk: the token <unk>. refuse: an error."""
    strip: bool = False
    """Whether to leave out the spaces at both ends of each split of bytes."""
    vocab_size: Count | None = None
    """Number of different tokens, for estimates before the text is read. null: unknown."""
    tokenizer: Path | None = None
    """The tokenizer.json of `data.level=subword`, or a folder that holds one. null: of weights that are named, their
    own."""

    def validate(self) -> None:
        """Check the values, and how they go together.

        Raises:
            UserError: One is not allowed.
        """
        check(self, "data.")
        if self.split is not None and len(self.split) != 3:
            raise UserError(f"data.split={self.split} must be three positive numbers of bytes: [train, valid, test]")
        if self.members and len(self.members) not in (1, 3):
            raise UserError(f"data.members={self.members} must be one name, or those of train, valid and test")
        if self.ids == "frequency" and self.level != "word":
            raise UserError(f"data.ids=frequency numbers words, but data.level={self.level}; take data.ids=appearance")
        if self.tokenizer is not None and self.level != "subword":
            raise UserError(
                f"data.tokenizer={self.tokenizer} goes with data.level=subword, not with data.level={self.level}"
            )
        self._check_source()

    def _check_source(self) -> None:
        origin = self.origin
        if self.split is not None and (len(self.members) == 3 or (origin == "path" and not isfile(self.path or ""))):
            raise UserError(f"data.split={self.split} does not go with data={self.name}, whose files are the splits")
        if origin == "download" and not (self.file or self.urls):
            raise UserError(f"data={self.name} has neither data.file nor data.urls nor data.path; give data.file=PATH")
        if origin == "path" and self.path is None:
            raise UserError(
                f"data={self.name} needs data.path=DIR, a folder that holds train.txt, valid.txt and test.txt, or "
                f"data.path=FILE, one text"
            )
        if self.path is not None and origin != "path":
            instead = "leave it out" if origin == "stdlib" else "give data.file=PATH"
            raise UserError(f"data.path={self.path} goes with data=files; for data={self.name} {instead}")
        if self.file is not None and origin != "download":
            raise UserError(f"data.file={self.file} does not go with data={self.name}; give data=files data.path=DIR")

    @property
    def origin(self) -> str:
        """Where the text comes from: download, path or stdlib."""
        if self.source != "auto":
            return self.source
        return "path" if self.path is not None and not (self.file or self.urls) else "download"

    @property
    def ends_in_eos(self) -> bool:
        """Whether a line end becomes the token <eos>."""
        return self.level == "word" if self.line_ends == "auto" else self.line_ends == "eos"
