"""How much time and memory does a model cost on this machine, or on a GPU that is elsewhere?

It may import every other wing; only `cli` imports it. `timing` measures, `workloads` and `project` are what is
measured, `counting` and `cost_model` compute instead of measuring. See `adaptive-span benchmark --help`.
"""
