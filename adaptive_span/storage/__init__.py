"""How are files written whole or not at all, and read as data and never as code?

`writing` is for all files, `strict_json`, `stored` (YAML, JSON) and `tensor_file` are for one kind each. It may import
`config` and below.
"""
