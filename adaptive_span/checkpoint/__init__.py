"""What is kept of a model, and how do the files of others become one?

`files` saves and loads this project's checkpoints, `original` reads those of the original project, `exported` writes
and reads folders, and `loading` reads all of them. `matching` finds the text that fits one. It may import
`distributed`, `data`, `model` and below.
"""
