"""Errors that a user can cause: one sentence that names the thing, its value, what is allowed and what to do."""

import unicodedata
from difflib import get_close_matches


class UserError(Exception):
    """An error that is printed as its sentence alone, without a traceback. Every other exception is a bug.

    The sentence is one line, and moves no cursor, whatever names and values it repeats.
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
    """Return a value as a sentence repeats it, cut after `most` characters."""
    try:
        text = str(value)
    except ValueError:  # an integer of thousands of digits
        return "a number without end"
    return text if len(text) <= most else f"{text[:most]}…"


class ProcessLost(UserError):
    """One of a run's processes was killed or hangs.

    That is neither a user's mistake nor a bug: the same command resumes.
    """

    def __init__(self, sentence: str, exit_code: int = 1):
        super().__init__(sentence)
        self.exit_code = exit_code


def did_you_mean(word: str, allowed: list[str] | tuple[str, ...]) -> str:
    """Return `; did you mean 'steps'?` for the nearest of `allowed`, or nothing where none is near."""
    near = get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def either(numbers: list[int]) -> str:
    """Return numbers as people list them: 4, 8 or 16."""
    *rest, last = map(str, numbers)
    return f"{', '.join(rest)} or {last}" if rest else last


def first_line(error: Exception) -> str:
    """Return the first line of a library's message, so that it fits into a sentence."""
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


def check_batch(key: str, batch_size: int, processes: int, batch_split: int = 1) -> None:
    """Check that every process takes as many rows, in as many equal slices.

    Args:
        key: The key that holds the rows, for the message.
        batch_size: Rows over all processes.
        processes: Number of processes.
        batch_split: Slices of a process's rows.

    Raises:
        UserError: The rows cannot be divided so.
    """
    divisor = max(1, processes) * batch_split
    if batch_size % divisor:
        raise UserError(
            f"{key}={batch_size} must be divisible by processes × slices = {max(1, processes)} × {batch_split} = "
            f"{divisor}; take {batch_size // divisor * divisor or divisor} or {(batch_size // divisor + 1) * divisor}"
        )
