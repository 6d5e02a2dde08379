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
