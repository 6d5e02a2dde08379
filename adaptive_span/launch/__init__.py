"""How does a command become processes, here or on a cluster?

It may import `training` and below.
"""
