"""The project's own data sets, each a file of `conf/data/`, for those who ask without Hydra.

How a text is numbered was a matter of its name once, and is a matter of keys now. What was written before those keys
existed means what the project's own file of that name says.
"""

from functools import cache
from typing import Any

import yaml

from adaptive_span.config.places import CONF


@cache
def _files() -> dict[str, dict[str, Any]]:
    return {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (CONF / "data").glob("*.yaml")}


def own(name: Any) -> dict[str, Any]:
    """Return what the project's own file says of a data set, by the names of `DataConfig`; nothing of another's."""
    return dict(_files().get(name, {})) if isinstance(name, str) else {}


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration, with those of `data` that did not exist when they were written."""
    data = values.get("data")
    return values | {"data": own(data.get("name")) | data} if isinstance(data, dict) else values
