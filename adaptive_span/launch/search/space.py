"""Read the ranges of a search, as a sweep's file holds them, for Optuna."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from adaptive_span.config.overrides import keys, quoted
from adaptive_span.config.schema import Config
from adaptive_span.errors import UserError, shown

DIGITS = 4  # of a number that is not whole: more would make no difference, and fill the table


def distributions(ranges: Any) -> dict[str, BaseDistribution]:
    """Return what Optuna may choose for each key.

    Args:
        ranges: For each key `{low: …, high: …}`, with `log: true` or `step: …` if need be, or a list of choices.

    Raises:
        UserError: One of them is no range.
    """
    if not isinstance(ranges, dict):
        raise UserError(f"sweep.ranges={shown(ranges)} must hold a range or a list for each key")
    return {key: _distribution(key, given) for key, given in ranges.items()}


def _distribution(key: str, given: Any) -> BaseDistribution:
    if problem := _problem(given):
        raise UserError(f"sweep.ranges.{key}={shown(given)} is no range: {problem}")
    if isinstance(given, list):
        return CategoricalDistribution(given)
    low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log", False)
    hint = keys(Config).get(key)
    if all(isinstance(each, int) for each in (low, high, step or 1)) and float not in (hint, *get_args(hint)):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def _problem(given: Any) -> str | None:
    """Return what is wrong with a range, or None."""
    if isinstance(given, list):
        plain = all(each is None or isinstance(each, bool | int | float | str) for each in given)
        apart = plain and len({json.dumps(each) for each in given}) == len(given) > 1
        return None if apart else "a list needs two or more choices, each a number, a text, true, false or null"
    wanted = "give {low: 0.01, high: 0.1}, with log: true or step: 0.01 if you like, or a list of choices"
    if not isinstance(given, dict) or not {"low", "high"} <= given.keys() <= {"low", "high", "log", "step"}:
        return wanted
    numbers = [value for key, value in given.items() if key != "log"]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers):
        return "low, high and step must be numbers"
    if not isinstance(given.get("log", False), bool):
        return "log must be true or false"
    if not given["low"] < given["high"]:
        return "low must be below high"
    if "step" in given and not 0 < given["step"] <= given["high"] - given["low"]:
        return "step must be above 0, and lead from low at most to high"
    if given.get("log") and ("step" in given or given["low"] <= 0):
        return "log: true needs a low above 0, and goes without step"
    return None


def corners(space: Mapping[str, BaseDistribution]) -> Iterator[dict[str, Any]]:
    """Yield values of trials that could be: the first of every key, then each key's other ends or choices alone."""
    ends: dict[str, list[Any]] = {
        key: list(each.choices) if isinstance(each, CategoricalDistribution) else [each.low, each.high]  # type: ignore[attr-defined]
        for key, each in space.items()
    }
    first = {key: values[0] for key, values in ends.items()}
    yield first
    for key, values in ends.items():
        for value in values[1:]:
            yield first | {key: value}


def values(space: Mapping[str, BaseDistribution], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trial runs with, by key: what Optuna has chosen, its numbers rounded to four digits."""
    return {key: _rounded(each, params[key]) for key, each in space.items()}


def _rounded(distribution: BaseDistribution, value: Any) -> Any:
    if not isinstance(distribution, FloatDistribution):
        return value
    digits = DIGITS if distribution.step is None else 2 * DIGITS
    return min(max(float(f"{value:.{digits}g}"), distribution.low), distribution.high)


def arguments(values: Mapping[str, Any]) -> list[str]:
    """Return the values of a trial as a command holds them."""
    return [f"{key}={quoted(each) if isinstance(each, str) else json.dumps(each)}" for key, each in values.items()]
