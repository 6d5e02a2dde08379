"""What does the network compute between token ids and losses?

It may import `attention` and below.
"""
