"""What does the network compute between token ids and losses?

It may import `attention` and below. Shapes are in the letters of `adaptive_span.attention`, and besides:

    N  layers (in `persistent_memory`, vectors per head)        V  vocabulary size
    F  feed-forward size                                        T  cached tokens
"""
