"""How many bits does a model need for a text?

`scoring` computes, `report` prints and draws, `evaluate` is the whole of `evaluate.py`. It may import `reporting`,
`checkpoint` and below, not `training`.
"""
