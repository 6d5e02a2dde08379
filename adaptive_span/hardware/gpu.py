"""Find out what a GPU can do, and whether this build of torch runs on it."""

import os
import re
import warnings
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

import torch

from adaptive_span.errors import UserError

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the second one is the older name
TENSOR_CORES = (8, 0)  # the compute capability from which on they multiply bfloat16 and TF32


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch calls `cuda`."""

    name: str
    capability: tuple[int, int]
    is_rocm: bool = False  # AMD's, whose numbers of capability mean something else

    @property
    def multiplies_bf16(self) -> bool:
        """Whether it has instructions for products in bfloat16 and TF32: nothing is emulated."""
        return not self.is_rocm and self.capability >= TENSOR_CORES

    def __str__(self) -> str:
        return self.name if self.is_rocm else f"{self.name} of compute capability {'.'.join(map(str, self.capability))}"


def describe(device: torch.device) -> Gpu:
    """Return what torch knows of a GPU."""
    properties = torch.cuda.get_device_properties(device)
    return Gpu(properties.name, (properties.major, properties.minor), torch.version.hip is not None)


def use(device: torch.device) -> None:
    """Make a GPU this process's own.

    Raises:
        UserError: This build of torch holds no code for it.
    """
    if torch.version.hip is None:
        expand_segments(os.environ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.cuda")  # ten lines for what is raised below
        torch.cuda.set_device(device)
        gpu = describe(device)
    if not (gpu.is_rocm or is_built_for(gpu.capability, torch.cuda.get_arch_list())):
        raise UserError(
            f"{gpu} cannot run this build of torch, which holds code for {' '.join(torch.cuda.get_arch_list())}; "
            f"install one that was built for it (pytorch.org/get-started), or take hardware=cpu"
        )


def expand_segments(environment: MutableMapping[str, str]) -> None:
    """Let torch's allocator grow its segments, so that tensors whose sizes follow the spans leave fewer gaps.

    It reads that when the GPU is first used; what a user has set stays. NCCL would register such memory for the graphs
    that it is part of, and then hang or fail (pytorch issue 158029), so it is asked not to.
    """
    if not any(name in environment for name in ALLOCATOR):
        environment["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
        environment.setdefault("NCCL_GRAPH_REGISTER", "0")


def is_built_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Return whether code for one of `architectures` runs on a compute capability.

    `sm_86` is machine code: it runs on its own generation, from that revision on. `compute_90` is translated by the
    driver for whatever is newer. A letter after the number ties code to that very chip.
    """
    for name in architectures:
        kind, number, letter = re.fullmatch(r"(sm|compute)_(\d+)([a-z]?)", name).groups()  # type: ignore[union-attr]
        built = divmod(int(number), 10)
        if letter in ("", "f") and (built[0] == capability[0] or kind == "compute") and built <= capability:
            return True
        if letter == "a" and built == capability:
            return True
    return False
