"""What is kept of a model, and how do the files of others become one?

It may import `distributed`, `data`, `model` and below.
"""
