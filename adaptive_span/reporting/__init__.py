"""How do people and programs see how a run goes, and how it went?

It may import `checkpoint` and below.
"""
