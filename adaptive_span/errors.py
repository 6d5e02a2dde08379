"""What a user can cause: one sentence that names the thing, its value, what is allowed and what to do."""

from difflib import get_close_matches


class UserError(Exception):
    """Shown as its sentence alone, without a traceback. Everything else that is raised is a bug."""


def did_you_mean(word: str, allowed: list[str] | tuple[str, ...]) -> str:
    """`; did you mean 'steps'?` for the nearest of `allowed`, or nothing where none is near."""
    near = get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{key}={value} must be at least {least}")


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value} must be one of {', '.join(allowed)}{did_you_mean(value, allowed)}")


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
