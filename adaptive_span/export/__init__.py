"""How does a model become a folder that others can use without this package?

`folder` writes it, whole or not at all: weights, configuration, `tokenizer`, model `card`, and the code in `hub`.
`push` uploads it. It may import `reporting` and below.
"""
