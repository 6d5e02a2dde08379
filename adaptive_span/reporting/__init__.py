"""How do people and programs see how a run goes, and how it went?

`tracking` writes metrics, `console` prints, `figures` draws, `scores` and `run_directory` keep what a run leaves,
`sweep_table` compares runs. It may import `checkpoint` and below.
"""
