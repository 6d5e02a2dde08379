"""How far do the heads of a model that exists need to look?

Spans are fitted to the heads of a causal language model of transformers, whose weights stay as they are; then the model
is used with these spans, and with a cache that keeps no more than they need. transformers comes with the extra `hf`. It
may import `reporting` and below.
"""
