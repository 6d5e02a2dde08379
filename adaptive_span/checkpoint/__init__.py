"""What is kept of a model, and how do the files of others become one?

`files` saves and loads this project's checkpoints, `original` reads those of the original project, `matching` finds the
text that fits one. It may import `distributed`, `data`, `model` and below.
"""
