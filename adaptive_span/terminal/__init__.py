"""How does a program talk to the person in front of it?

It may import `errors`.
"""
