"""What a user can cause: one sentence that names the thing, its value, what is allowed and what to do."""

import unicodedata
from difflib import get_close_matches


class UserError(Exception):
    """Shown as its sentence alone, without a traceback. Everything else that is raised is a bug.

    It is one line, and moves no cursor, whatever the names and values that it repeats.
    """

    exit_code = 2

    def __init__(self, sentence: str):
        super().__init__("".join(_escaped(each) if is_control(each) else each for each in sentence))


def is_control(character: str) -> bool:
    """Return whether a character ends a line, moves the cursor, or is half of one (as a byte that is not UTF-8 is)."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def shown(value: object, most: int = 100) -> str:
    """Return a value as a sentence repeats it, however long it is."""
    try:
        text = str(value)
    except ValueError:  # an integer of thousands of digits
        return "a number without end"
    return text if len(text) <= most else f"{text[:most]}…"


class ProcessLost(UserError):
    """One of a run's processes was killed or hangs. It is nobody's mistake and no bug: the same command resumes."""

    def __init__(self, sentence: str, exit_code: int = 1):
        super().__init__(sentence)
        self.exit_code = exit_code


def did_you_mean(word: str, allowed: list[str] | tuple[str, ...]) -> str:
    """`; did you mean 'steps'?` for the nearest of `allowed`, or nothing where none is near."""
    near = get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def either(numbers: list[int]) -> str:
    *rest, last = map(str, numbers)
    return f"{', '.join(rest)} or {last}" if rest else last


def first_line(error: Exception) -> str:
    """Of what a library says, to stand within a sentence."""
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def check_batch(key: str, batch_size: int, processes: int, batch_split: int = 1) -> None:
    """Every process takes as many rows, in as many equal slices."""
    parts = max(1, processes) * batch_split
    if batch_size % parts:
        raise UserError(
            f"{key}={batch_size} must be divisible by processes × slices = {max(1, processes)} × {batch_split} = "
            f"{parts}; take {batch_size // parts * parts or parts} or {(batch_size // parts + 1) * parts}"
        )
