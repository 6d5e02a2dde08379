"""What does this machine have, and what can it do?

It may import `storage` and below.
"""
