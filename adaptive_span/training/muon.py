"""Muon for the matrices of the hidden layers, and with AdamW for all else as one optimizer.

torch's own Muon goes through matrices one by one and waits for a rate that lies on a GPU, so a step with it cannot be
recorded as a CUDA graph. Here the matrices of one shape are updated together.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from adaptive_span.config.optimizer_schema import OptimizerConfig
from adaptive_span.training import parameter_groups
from adaptive_span.training.parameter_groups import Named

ITERATIONS = 5
QUINTIC = 3.4445, -4.775, 2.0315  # a, b, c of aX + bX³ + cX⁵, which brings singular values near 1


class Muon(Optimizer):
    """Step by the nearest orthogonal matrix to each matrix's momentum (https://kellerjordan.github.io/posts/muon).

    B ← μB + (1 − μ)G, and W ← (1 − ηλ)W − η √max(1, rows/columns) · orthogonal((1 − μ)G + μB).

    Args:
        groups: matrices, with the rate η of each group: a number, or a tensor beside the matrices.
        momentum: μ.
        weight_decay: λ.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float, weight_decay: float):
        super().__init__(groups, {"momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update once."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for (rows, columns), matrices in by_shape.items():
                update = orthogonal(self._momentum(matrices, group["momentum"]))  # (K, rows, columns)
                rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
                if group["weight_decay"]:
                    torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_sub_(matrices, list((update.to(matrices[0].dtype) * rate).unbind()))

    def _momentum(self, matrices: list[Tensor], momentum: float) -> Tensor:
        """Take in the gradients, and return what to step along, (K, rows, columns)."""
        grads = [matrix.grad for matrix in matrices if matrix.grad is not None]
        states = [self.state[matrix] for matrix in matrices]
        for state, grad in zip(states, grads, strict=True):
            if not state:
                state["momentum_buffer"] = torch.zeros_like(grad)
        sums = [state["momentum_buffer"] for state in states]
        torch._foreach_lerp_(sums, grads, 1 - momentum)
        return torch.stack(torch._foreach_lerp(grads, sums, momentum))


def orthogonal(matrices: Tensor) -> Tensor:
    """Return about the nearest orthogonal matrix to each, (K, rows, columns), in bf16, by Newton-Schulz."""
    is_tall = matrices.size(1) > matrices.size(2)
    x = matrices.bfloat16()
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class MuonAndAdamW(Optimizer):
    """Update matrices by Muon, and all other parameters by AdamW.

    Each holds its share of one state and one list of groups, so that a checkpoint and a schedule see one optimizer.

    Args:
        params: by their names.
        lr: of Muon.
        config: momentum, weight decay, and the rates of AdamW.
    """

    def __init__(self, params: Named, lr: float | Tensor, config: OptimizerConfig):
        assert config.adamw_lr is not None
        matrices, spans, others = parameter_groups.split(params)
        span_lr = config.adamw_lr if config.span_lr is None else config.span_lr
        groups = [
            *parameter_groups.group(others, lr, config.adamw_lr / config.lr),
            *parameter_groups.group(spans, lr, span_lr / config.lr),
        ]
        self.parts: list[Optimizer] = []
        if matrices:
            self.parts.append(Muon(parameter_groups.group(matrices, lr, 1.0), config.momentum, config.weight_decay))
        if groups:
            self.parts.append(AdamW(groups, betas=(config.betas[0], config.betas[1]), weight_decay=0.0))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of another one, as `load_state_dict` does, for both parts."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state, part.param_groups = self.state, [next(groups) for _ in part.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update once."""
        for part in self.parts:
            part.step()
