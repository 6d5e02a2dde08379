"""What can be set, to which values, and what makes two runs the same?

`schema` is the typed configuration of a training. Its larger groups have files of their own, like `model_schema`, with
the meaning of each key under its field. `evaluate_schema`, `generate_schema` and `fit_schema` are those of other
commands. `kinds` and `checks` are the rules of values. `identity` tells runs apart. Nothing here imports torch or
Hydra. It may import `terminal` and below.
"""
