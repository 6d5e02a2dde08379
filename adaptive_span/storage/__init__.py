"""How are files written whole or not at all, and read as data and never as code?

It may import `config` and below.
"""
