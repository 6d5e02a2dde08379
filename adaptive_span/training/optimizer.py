"""The published updates: Adagrad clipped tensor by tensor, SGD and Adam clipped as a whole; and the learning rate."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import SGD, Adam, Optimizer

from adaptive_span.config.schema import OptimizerConfig, TrainConfig
from adaptive_span.model import elementwise

FINETUNE_FACTOR = 0.1
EPSILON = 1e-10  # of Adagrad
AT_ONCE = {"cpu": 2**20, "cuda": 2**27}  # numbers: on a CPU so many as its cache holds, on a GPU for few launches


class ClippedAdagrad(Optimizer):
    """Adagrad whose step is clipped by each tensor's gradient norm, many tensors at once and without a host sync.

    The norm scales the learning rate of a tensor's update; the accumulator takes the gradient as it is:
    acc += g², p −= lr · min(1, clip / (‖g‖ + ε)) · g / (√acc + ε), with ε = 1e-10.
    """

    def __init__(self, params: Iterable[Any], lr: float | Tensor, clip: float):
        super().__init__(params, {"lr": lr, "clip": clip})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["sum"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> Tensor:  # type: ignore[override]
        """Update once, and return the norm of each gradient, (P,), on the device."""
        norms = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            parts, update = ([params], _one_launch) if _in_triton(params) else (_at_once(params), _update)
            for part in parts:
                grads, sums = [p.grad for p in part], [self.state[p]["sum"] for p in part]
                norms.append(torch.stack(torch._foreach_norm(grads)))
                update(part, grads, sums, norms[-1], group["lr"], group["clip"])
        return torch.cat(norms)


def _in_triton(params: list[Tensor]) -> bool:
    return elementwise.in_triton(params[0]) and all(parameter.dtype == torch.float32 for parameter in params)


def _one_launch(
    params: list[Tensor], grads: list[Tensor], sums: list[Tensor], norms: Tensor, rate: Tensor | float, clip: float
) -> None:
    from adaptive_span.model.elementwise import adagrad  # triton, which a machine without a GPU need not have

    adagrad.update(params, grads, sums, norms, rate, clip, EPSILON)


def _update(
    params: list[Tensor], grads: list[Tensor], sums: list[Tensor], norms: Tensor, rate: Tensor | float, clip: float
) -> None:
    rates = rate * (clip / (norms + EPSILON)).clamp(max=1)
    torch._foreach_addcmul_(sums, grads, grads)
    denominators = torch._foreach_sqrt(sums)
    torch._foreach_add_(denominators, EPSILON)
    torch._foreach_div_(denominators, list(rates.unbind()))
    torch._foreach_addcdiv_(params, grads, denominators, value=-1)


def _at_once(params: list[Any]) -> Iterator[list[Any]]:
    """So many as are updated together."""
    first = size = 0
    for place, parameter in enumerate(params):
        if size and size + parameter.numel() > AT_ONCE.get(parameter.device.type, AT_ONCE["cuda"]):
            yield params[first:place]
            first, size = place, 0
        size += parameter.numel()
    yield params[first:]


def build(config: OptimizerConfig, params: Iterable[Tensor]) -> Optimizer:
    """Return the optimizer of these parameters, which are all on one device.

    On a GPU the rate is a tensor there, so that a recorded update can be given another one.
    """
    params = list(params)
    on_gpu = params[0].is_cuda
    rate = torch.tensor(config.lr, device=params[0].device) if on_gpu else config.lr
    match config.name:
        case "adagrad":
            return ClippedAdagrad(params, lr=rate, clip=config.clip)
        case "adam":
            return Adam(params, lr=rate, capturable=on_gpu)
        case _:
            return SGD(params, lr=rate, momentum=config.momentum, fused=on_gpu)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of the next update."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """Return the optimizer's state, the same on every device."""
    state = optimizer.state_dict()
    return state | {"param_groups": [group | {"lr": float(group["lr"])} for group in state["param_groups"]]}


def load_state_dict(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take over the moments or sums of another one; how to compute with them stays this one's own."""
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})


def update(optimizer: Optimizer, config: OptimizerConfig) -> Tensor:
    """Update from the gradients at hand, and return the norm of each before clipping, (P,), on the device."""
    if isinstance(optimizer, ClippedAdagrad):
        return optimizer.step()
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norms = torch.stack(torch._foreach_norm([p.grad for p in params]))
    clip_grads_with_norm_(params, config.clip, torch.linalg.vector_norm(norms))
    optimizer.step()
    return norms


def learning_rate(step: int, peak: float, train: TrainConfig) -> float:
    """Of update `step`, counted from 1: linear warm-up to `peak`; a tenth of it after `train.steps`."""
    rate = peak * min(1.0, step / train.warmup_steps) if train.warmup_steps else peak
    return rate * FINETUNE_FACTOR if step > train.steps else rate
