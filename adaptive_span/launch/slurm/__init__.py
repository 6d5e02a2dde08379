"""How does a training become SLURM jobs? The only place that knows SLURM.

`launcher` is Hydra's launcher: it turns the runs of a command into one submission. `resources` checks what they ask
for, `cluster` asks SLURM what there is and how jobs are doing, `snapshot` keeps the code that was submitted, `job` is
what runs on each node, and `status` prints how it goes.
"""
