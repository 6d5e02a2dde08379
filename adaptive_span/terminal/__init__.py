"""How does a program talk to the person in front of it?

`printing` and `plain_text` make text safe to print, `output` survives a reader that is gone, `program` ends with the
right exit code. It may import `errors`.
"""
