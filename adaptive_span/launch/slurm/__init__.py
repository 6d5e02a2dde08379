"""The one place that knows SLURM.

`launcher.py` is Hydra's launcher: it turns the jobs of a command into one submission. `cluster.py` asks SLURM what
there is and how jobs are doing, `snapshot.py` keeps the code that was submitted, `job.py` is what a job runs on each
node, and `status.py` shows how it goes: `python -m adaptive_span.launch.slurm status DIR`.
"""
