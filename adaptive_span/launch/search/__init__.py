"""How does a search choose the values of its next runs by what earlier ones came to?

`sweeper` is Hydra's plugin, `space` reads the ranges of a sweep's file, `rounds` asks Optuna, has Hydra's launcher run
what it says and tells it the scores, `study` is the file in which Optuna keeps them, `judge` ends runs early, and
`report` sums up. Only `space`, `rounds`, `study` and `report` import Optuna.
"""
