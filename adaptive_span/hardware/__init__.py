"""What does this machine have, and what can it do?

`machine` counts cores and memory, `capacity` refuses what does not fit, `gpu`, `precision`, `compilers` and
`step_graph` choose how to compute. It may import `storage` and below.
"""
