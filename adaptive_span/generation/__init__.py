"""How does a text that a model writes look?

`generate` is the whole of `adaptive-span generate`; `adaptive_span.model.decoder` predicts, `model.sampling` draws. It
may import `reporting`, `checkpoint` and below, not `training`.
"""
