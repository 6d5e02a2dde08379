"""How does one step follow another, to the last bit also after a stop?

It may import `evaluation` and below.
"""
