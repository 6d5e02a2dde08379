"""Keep the gradients of all parameters in one tensor, so that processes add them up in one call."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn


class FlatGradients:
    """Keep gradients at fixed addresses: each parameter's is a view of one tensor, which backward passes add to.

    For steps that run as a CUDA graph. `DistributedDataParallel`, whose sums overlap with the backward pass, needs its
    hooks to run on the host.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, view in zip(parameters, self.flat.split(sizes), strict=True):
            parameter.grad = view.view_as(parameter)

    def zero_(self) -> None:
        """Set all gradients to zero, to begin a step."""
        self.flat.zero_()

    def average_(self) -> None:
        """Take the mean over all processes."""
        dist.all_reduce(self.flat)
        self.flat.div_(dist.get_world_size())
