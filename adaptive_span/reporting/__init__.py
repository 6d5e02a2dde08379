"""How do people and programs see how a run goes, and how it went?

`tracking` writes metrics and hands them to a tracker, whose names for them are in `tracked_names`. `progress` and
`console` print, `scores` and `run_directory` keep what a run leaves, `run_record` reads it. `figures` draws spans,
`run_figures` and `sweep_table` compare runs, `figure_files` decides what is drawn. It may import `checkpoint` and what
is below.
"""
