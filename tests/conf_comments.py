"""Write beside each key in `conf/` what the docstring of its field says.

python -m tests.conf_comments        rewrites the files
"""

import re

from adaptive_span.config.descriptions import Key, describe
from adaptive_span.config.evaluate_schema import EvaluateConfig
from adaptive_span.config.fit_schema import FitConfig
from adaptive_span.config.generate_schema import GenerateConfig
from adaptive_span.config.places import CONF
from adaptive_span.config.schema import Config

FILES = {
    "launch": Config,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "fit": FitConfig,
    "hardware/auto": Config,
    "hardware/slurm": Config,
    "search/optuna": Config,
}
COLUMN, WIDTH = 29, 120


def commented(file: str, schema: type) -> str:
    """Return the text of a file of conf/, with a comment beside each key."""
    known, lines = describe(schema), []
    parents: list[str] = []
    text = (CONF / f"{file}.yaml").read_text(encoding="utf-8")
    package = file.split("/")[:-1] if "_global_" not in text else []
    for line in text.splitlines():
        if setting := re.match(r"( *)(\w+):( *[^#\s][^#]*)?", line):
            parents = [*parents[: len(setting[1]) // 2], setting[2]]
            if key := known.get(".".join(package + parents)):
                line = f"{setting[0].rstrip():{COLUMN - 2}}  # {fitting(key)}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def fitting(key: Key) -> str:
    """Return as many of the sentences of a meaning as fit beside a key."""
    first, *others = re.split(r"(?<=\.) ", key.meaning)
    comment = f"{first.removesuffix('.')}: {' '.join(key.unexplained)}." if key.unexplained else first
    for sentence in others:
        if COLUMN + 2 + len(f"{comment} {sentence}") - 1 > WIDTH:
            break
        comment += f" {sentence}"
    return comment.replace("`", "")


if __name__ == "__main__":
    for file, schema in FILES.items():
        (CONF / f"{file}.yaml").write_text(commented(file, schema), encoding="utf-8")
