"""What can be set, to which values, and what makes two runs the same?

`schema` is the typed configuration of a training, with the meaning of each key under its field; `evaluate_schema`,
`generate_schema` and `fit_schema` are those of other commands. `checks` are the rules of values; `identity` tells runs
apart. Nothing here imports torch or Hydra. It may import `terminal` and below.
"""
