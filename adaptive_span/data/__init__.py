"""How does a text become rows of token ids?

It may import `hardware` and below.
"""
