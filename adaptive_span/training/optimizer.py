"""The updates: Adagrad clipped tensor by tensor, as published, the others clipped as a whole; and those of plugins."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import SGD, Adam, AdamW, Optimizer

from adaptive_span.config.optimizer_schema import OptimizerConfig
from adaptive_span.config.registry import OPTIMIZERS
from adaptive_span.errors import UserError
from adaptive_span.model import elementwise
from adaptive_span.training import parameter_groups
from adaptive_span.training.muon import MuonAndAdamW
from adaptive_span.training.parameter_groups import Named

Builder = Callable[[Named, float | Tensor, OptimizerConfig], Optimizer]

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


def register_optimizer(
    name: str, state: int = 0, momentum: bool = False, reads: Sequence[str] = ()
) -> Callable[[Builder], Builder]:
    """Return a decorator that makes a function the optimizer `optimizer.name=NAME`.

    The function takes the parameters with their names, as torch's optimizers take them, the learning rate (on a GPU a
    tensor there) and the configuration of the optimizer, and returns a `torch.optim.Optimizer`. Before each of its
    steps the gradients are clipped by their global norm to `optimizer.clip`. Checkpoints hold its `state_dict`.

    Args:
        name: What `optimizer.name` calls it.
        state: Numbers that it keeps per weight, for estimates of memory: 2 for the moments of Adam.
        momentum: Whether it reads `optimizer.momentum`, which is refused otherwise.
        reads: Other keys that it reads, of momentum, betas, weight_decay, span_lr and adamw_lr.
    """
    return OPTIMIZERS.register(name, state=state, reads=[*reads, *(["momentum"] if momentum else [])])


def adagrad(params: Named, lr: float | Tensor, config: OptimizerConfig) -> Optimizer:
    """Return Adagrad as the papers clip it."""
    return ClippedAdagrad(params, lr=lr, clip=config.clip)


def adam(params: Named, lr: float | Tensor, config: OptimizerConfig) -> Optimizer:
    """Return Adam (arXiv 1412.6980) with its usual moments."""
    return Adam(params, lr=lr)


def adamw(params: Named, lr: float | Tensor, config: OptimizerConfig) -> Optimizer:
    """Return AdamW (arXiv 1711.05101), whose weight decay is that of the hidden layers' matrices alone."""
    matrices, spans, others = parameter_groups.split(params)
    span_lr = config.lr if config.span_lr is None else config.span_lr
    groups = [
        *parameter_groups.group(matrices, lr, 1.0, weight_decay=config.weight_decay),
        *parameter_groups.group(others, lr, 1.0, weight_decay=0.0),
        *parameter_groups.group(spans, lr, span_lr / config.lr, weight_decay=0.0),
    ]
    return AdamW(groups, betas=(config.betas[0], config.betas[1]))


def muon(params: Named, lr: float | Tensor, config: OptimizerConfig) -> Optimizer:
    """Return Muon for the hidden layers' matrices, with AdamW at `optimizer.adamw_lr` for the rest."""
    return MuonAndAdamW(params, lr, config)


def sgd(params: Named, lr: float | Tensor, config: OptimizerConfig) -> Optimizer:
    """Return SGD with `optimizer.momentum`."""
    return SGD(params, lr=lr, momentum=config.momentum, fused=params[0][1].is_cuda)


def build(config: OptimizerConfig, named: Iterable[tuple[str, Tensor]]) -> Optimizer:
    """Return the optimizer of these parameters, which are all on one device.

    On a GPU the rate is a tensor there, so that a recorded update can be given another one.
    """
    params = list(named)
    on_gpu, device = params[0][1].is_cuda, params[0][1].device
    rate = torch.tensor(config.lr, device=device) if on_gpu else config.lr
    optimizer = OPTIMIZERS[config.name](params, rate, config)
    if not isinstance(optimizer, Optimizer):
        raise UserError(
            f"optimizer.name={config.name} must build a torch.optim.Optimizer, but gave {type(optimizer).__name__}"
        )
    for group in optimizer.param_groups:
        if "capturable" in group:  # torch's own count their steps on the GPU then
            group["capturable"] = on_gpu
    return optimizer


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of the next update; that of a group is a multiple of it."""
    for group in optimizer.param_groups:
        own = rate * group.get("factor", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def state_dict(optimizer: Optimizer) -> dict[str, Any]:
    """Return the optimizer's state, the same on every device. The names of weights stand beside the weights alone."""
    state = optimizer.state_dict()
    groups = [group | {"lr": float(group["lr"])} for group in state["param_groups"]]
    return state | {"param_groups": [{k: v for k, v in group.items() if k != "param_names"} for group in groups]}


def load_state_dict(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take over the moments or sums of another one; how to compute with them stays this one's own."""
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})


def update(optimizer: Optimizer, config: OptimizerConfig, parameters: Iterable[Tensor]) -> Tensor:
    """Update parameters from their gradients, and return the norm of each before clipping, (P,), on the device."""
    if isinstance(optimizer, ClippedAdagrad):
        return optimizer.step()
    params = [parameter for parameter in parameters if parameter.grad is not None]
    norms = torch.stack(torch._foreach_norm([p.grad for p in params if p.grad is not None]))
    clip_grads_with_norm_(params, config.clip, torch.linalg.vector_norm(norms))
    optimizer.step()
    return norms
