"""How many bits does a model need for a text?

It may import `reporting` and below.
"""
