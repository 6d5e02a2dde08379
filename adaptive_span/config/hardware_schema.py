"""Define the keys of `hardware`: devices and processes here, or jobs on a cluster."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from adaptive_span.config import quantities
from adaptive_span.config.checks import OneOf, Range, check
from adaptive_span.config.kinds import CountOrNone, Size, SizeOrNone
from adaptive_span.config.quantities import Gpus
from adaptive_span.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")
GRAPHS = ("auto", "off")
PRECISIONS = ("auto", "fp32", "bf16", "tf32")
YEAR = 525_600  # minutes


@dataclass
class HardwareConfig:
    """Say where to compute: devices and processes of this machine, or jobs on a SLURM cluster."""

    device: Annotated[str, OneOf(DEVICES)] = "auto"
    """Kind of device. auto: a GPU where there is one, else the CPU."""
    processes: CountOrNone = 1
    """Processes per machine, each with one GPU or its share of the CPU cores. 0: one per GPU."""
    precision: Annotated[str, OneOf(PRECISIONS)] = "auto"
    """Number format of matrix products. auto: that of the checkpoint; at the start bf16 where a GPU has it in hardware,
    else fp32; for scores fp32. tf32: fp32 whose factors lost 13 bits, on the tensor cores of NVIDIA GPUs."""
    graphs: Annotated[str, OneOf(GRAPHS)] = "auto"
    """Whether a GPU gets a whole step at once, as a CUDA graph. off: operations are launched one by one."""
    compile: bool = False
    """Compile the model with `torch.compile`."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass. Takes less memory and more time."""
    timeout: Annotated[float, Range(0, YEAR, above=True)] = 10.0
    """Minutes that a process waits for another before all of them end."""
    max_restarts: CountOrNone = 0
    """How often processes are started again after one was lost or failed. They resume from the last checkpoint."""
    nodes: Size = 1
    """SLURM: number of nodes."""
    gpus: str | None = None
    """SLURM: GPUs per node. A number, or a type with one, like a100:2. null: all of them."""
    cpus: Size | None = None
    """SLURM: CPU cores per node. null: the share that goes with its GPUs."""
    memory: str | None = None
    """SLURM: memory per node, like 16GB; a number alone is GB. null: the cluster's default."""
    partition: str | None = None
    """SLURM: partition. null: the cluster's default."""
    account: str | None = None
    """SLURM: account that pays. null: your default."""
    qos: str | None = None
    """SLURM: quality of service. null: your default."""
    constraint: str | None = None
    """SLURM: a feature that the nodes must have, like a100. null: none."""
    time: str = "1440"
    """SLURM: minutes, or like 2:00:00 or 1-12:00:00. Then a job saves, requeues and resumes."""
    requeues: SizeOrNone = 100
    """SLURM: how often a job may queue again at its time limit."""
    parallel_jobs: Size = 8
    """SLURM: how many jobs of a sweep run at once."""
    wait: bool = False
    """SLURM: show how the jobs are doing until they end, and fail if one of them fails."""
    setup: list[str] = field(default_factory=list)
    """SLURM: shell lines that a job runs before Python, like ["module load cuda"]. A line that fails ends the job."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """SLURM: any other options of sbatch, like {exclude: n1, mail-type: END}."""

    def validate(self) -> None:
        """Check the values, and how they go together.

        Raises:
            UserError: One is not allowed.
        """
        check(self, "hardware.")
        _ = self.minutes, self.megabytes, self.wanted_gpus
        if self.max_restarts and self.nodes > 1:
            raise UserError(
                f"hardware.max_restarts={self.max_restarts} is for the processes of one machine, not of "
                f"hardware.nodes={self.nodes}; leave it out"
            )
        if self.device == "cpu" and self.processes == 0:
            raise UserError("hardware.processes=0 starts one for each GPU, but hardware.device=cpu; give their number")

    @property
    def minutes(self) -> int:
        """`time` in minutes."""
        return quantities.minutes(self.time)

    @property
    def megabytes(self) -> int | None:
        """`memory` in MB; None: the cluster's default."""
        return None if self.memory is None else quantities.megabytes(self.memory)

    @property
    def wanted_gpus(self) -> Gpus | None:
        """`gpus`, read; None: all of a node's."""
        return None if self.gpus is None else quantities.gpus(self.gpus)

    @property
    def world_size(self) -> int:
        """Processes over all nodes, as far as this is known before the nodes report their GPUs."""
        return self.nodes * max(1, self.processes or (self.wanted_gpus.count if self.wanted_gpus else 1))
