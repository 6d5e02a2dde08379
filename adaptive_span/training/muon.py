"""Muon for the matrices of the hidden layers and AdamW for all else, as one optimizer."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from adaptive_span.config.schema import OptimizerConfig
from adaptive_span.training import parameter_groups
from adaptive_span.training.parameter_groups import Named


class MuonAndAdamW(Optimizer):
    """Update matrices by Muon (https://kellerjordan.github.io/posts/muon), and all other parameters by AdamW.

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
            group = parameter_groups.group(matrices, lr, 1.0)
            self.parts.append(Muon(group, momentum=config.momentum, weight_decay=config.weight_decay))
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
