"""The one place that knows SLURM.

`launcher.py` is Hydra's launcher: it turns the jobs of a command into one submission. `cluster.py` asks SLURM what
there is and how jobs are doing, `snapshot.py` keeps the code that was submitted, `job.py` is what a job runs on each
node, and `status.py` shows how it goes: `python -m adaptive_span.slurm status DIR`.
"""

import sys


def register() -> None:
    """Make the launcher known to Hydra, which takes plugins from its own namespace alone: a module there stands for it.

    A package of that namespace would have to be installed, beside this one, before a checkout could be used.
    """
    from hydra.core.plugins import Plugins

    from adaptive_span.slurm import launcher

    sys.modules[launcher.Launcher.__module__] = launcher
    Plugins.instance().register(launcher.Launcher)
