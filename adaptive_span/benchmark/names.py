"""Name what can be measured, and of which models. Nothing here imports torch, so that `--help` answers at once."""

from adaptive_span.config.places import CONF

KINDS = ("attention", "step", "evaluate")  # implementations of attention beside one another
PROJECT = ("loop", "processes", "data")  # what the project adds to a bare training
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
PROFILES = ("paper", "fresh", "full")  # of the heads' spans
TRANSFORMERS = {"spans": [4000], "fit": [512, 1024, 2048]}  # of models of transformers: at which contexts, in tokens
