"""The options of sbatch that a user gives in `hardware.sbatch`, as its manual spells them."""

import re
from typing import Any

from adaptive_span.errors import UserError

# Those that a job has already, and what sets them instead. SLURM also takes the beginning of a name for the name.
TAKEN = {
    "account": "hardware.account",
    "array": "hardware.parallel_jobs and a sweep",
    "clusters": "the machines of the cluster itself",
    "constraint": "hardware.constraint",
    "cpus-per-task": "hardware.cpus",
    "error": "run.dir",
    "gpus-per-node": "hardware.gpus",
    "job-name": "run.dir",
    "mem": "hardware.memory",
    "no-requeue": "hardware.requeues",
    "nodes": "hardware.nodes",
    "ntasks-per-node": "hardware.processes",
    "open-mode": "run.dir",
    "output": "run.dir",
    "parsable": "hardware.wait",
    "partition": "hardware.partition",
    "qos": "hardware.qos",
    "quiet": "hardware.wait",
    "requeue": "hardware.requeues",
    "signal": "hydra.launcher.signal_delay_s",
    "tasks-per-node": "hardware.processes",
    "test-only": "hardware.wait",
    "time": "hardware.time",
    "wait": "hardware.wait",
    "wrap": "hardware.setup",
}


def checked(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options as a job's script holds them: true is an option alone, false and null leave it out.

    Raises:
        UserError: One is misspelt, or set by another key.
    """
    script = {}
    for name, value in options.items():
        given = f"hardware.sbatch={{{name}: {value}}}"
        if not re.fullmatch("[a-z][a-z-]*[a-z]", name):
            raise UserError(f"{given} must spell the option out as sbatch's manual does, like mail-user")
        if taken := next((TAKEN[taken] for taken in TAKEN if taken.startswith(name)), None):
            raise UserError(f"{given} is an option that the job has already: {taken} sets it; give that instead")
        if isinstance(value, list):
            value = ",".join(map(str, value))
        if isinstance(value, dict) or not str(value).isprintable():
            raise UserError(f"{given} must have one line of text, a number, true, or a list like [n1,n2]")
        if value is not None and value is not False:
            script[name] = value
    return script
