"""How does a command become processes, here or on a cluster?

`composition` and `command_line` make a configuration of a command's arguments, `running` trains it, `processes` starts
workers, `local`, `sweep_jobs` and `slurm` are Hydra's plugins. It may import `training` and below.
"""
