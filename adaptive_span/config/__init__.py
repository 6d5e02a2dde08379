"""What can be set, to which values, and what makes two runs the same?

It may import `terminal` and below.
"""
