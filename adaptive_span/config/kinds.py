"""Name the kinds of value that keys of several groups have."""

from typing import Annotated

from adaptive_span.config.checks import LONG, OneOf, Range, path

MANY = 2**63 - 1  # what 64 bits hold, for what is only counted
Count = Annotated[int, Range(1, MANY)]
CountOrNone = Annotated[int, Range(0, MANY)]
Size = Annotated[int, Range(1, LONG)]
SizeOrNone = Annotated[int, Range(0, LONG)]
Probability = Annotated[float, Range(0, 1, below=True)]
Rate = Annotated[float, Range(0, 1e30, above=True)]  # beyond this, updates are not finite
Path = Annotated[str, path]
Numbering = Annotated[str, OneOf(("same",))]
