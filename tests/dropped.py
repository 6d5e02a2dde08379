"""Attention with dropout against its definition in double precision: the mask is read off the output."""

from unittest import mock

import torch

from adaptive_span.attention import Projected, SpanGeometry, banded, dispatch, tiles

RAMP, SPAN, BLOCK, MEMORY, HEAD_SIZE = 8, 72, 16, 20, 128  # values as unit vectors show SPAN + BLOCK + MEMORY weights
SPANS, BOUNDS = (0.5, 40.3, 64.0), (32, 64, 72)  # of three heads, not in the order of their groups
LENGTH = SPAN + BLOCK


IN_TORCH = "banded in torch"  # as on a machine without a compiler


def choose(name):
    return _banded_in_torch if name == IN_TORCH else dispatch.choose(name)


def _banded_in_torch(*inputs):
    with mock.patch.object(tiles, "run_on", return_value=False):
        return banded.attend(*inputs)


class Given:
    """A context of queries (B, M, H, D) and keys and values (B, T, H, 2, D) as they are."""

    def __init__(self, query, keys_values):
        self.query, self.keys_values, self.dtype = query, keys_values, query.dtype

    def project(self, groups):
        block = self.query.size(1)
        return [
            Projected(self.query[:, :, list(heads)], self.keys_values[:, -span - block :, list(heads)])
            for heads, span in groups
        ]


def layer(device):
    """Return numbers that bfloat16 holds, so that rounding them is no part of the error."""
    draw, heads = torch.Generator().manual_seed(0), len(SPANS)
    shapes = {
        "query": (2, BLOCK, heads, HEAD_SIZE),
        "keys_values": (2, LENGTH, heads, 2, HEAD_SIZE),
        "positions": (HEAD_SIZE, SPAN),
        "memory_key": (heads, HEAD_SIZE, MEMORY),
        "memory_value": (heads, MEMORY, HEAD_SIZE),
    }
    drawn = {name: torch.randn(*shape, generator=draw).bfloat16().float() for name, shape in shapes.items()}
    drawn["query"] /= 8  # or each query would look at one key alone
    return {name: x.to(device) for name, x in (drawn | {"spans": torch.tensor(SPANS)}).items()}


def attend(attention, x, dropout, low):
    """Return the output, (B, M, H, D), computed as in the model: in bf16 under autocast, from queries, keys and values
    that are in bf16 already."""
    dtype, memory = torch.bfloat16 if low else torch.float32, (x["memory_key"], x["memory_value"])
    context = Given(x["query"].to(dtype), x["keys_values"].to(dtype))
    torch.manual_seed(0)
    with torch.autocast(x["query"].device.type, torch.bfloat16, enabled=low):
        geometry = SpanGeometry(x["spans"], RAMP, BOUNDS)
        return choose(attention)(context, x["positions"], geometry, dropout, memory).output


def kept(attention, x, dropout, low):
    """Return which weights dropout leaves, (B, H, M, T + N)."""
    units = torch.eye(HEAD_SIZE, device=x["query"].device)[: LENGTH + MEMORY]
    keys_values = x["keys_values"].clone()
    keys_values[..., 1, :] = units[:LENGTH, None]
    shown = x | {"keys_values": keys_values, "memory_value": units[LENGTH:].expand(len(SPANS), -1, -1)}
    return attend(attention, shown, dropout, low)[..., : LENGTH + MEMORY].transpose(1, 2) > 0


def by_the_definition(x, keep, dropout):
    """Dense attention with that mask, in the precision of `x`."""
    query = x["query"].transpose(1, 2)  # (B, H, M, D)
    key, value = x["keys_values"].permute(3, 0, 2, 1, 4).unbind()  # (B, H, T, D)
    distance = SPAN + torch.arange(BLOCK)[:, None] - torch.arange(LENGTH)  # (M, T)
    distance = distance.to(query.device)
    near = (query @ x["positions"]).gather(3, (SPAN - distance).clamp(0, SPAN - 1).expand(*query.shape[:2], -1, -1))
    height = (RAMP + 1 + x["spans"][:, None, None] - distance) / RAMP
    seen = (height >= 0) & (distance >= 1) & (distance <= SPAN)
    log_mask = torch.where(seen, (height.clamp(0, 1) + 1e-20).log(), float("-inf"))
    scores = torch.cat([query @ key.transpose(2, 3) + near + log_mask, query @ x["memory_key"]], dim=3)
    values = torch.cat([value, x["memory_value"].expand(query.size(0), -1, -1, -1)], dim=2)
    return ((scores.softmax(3) * keep / (1 - dropout)) @ values).transpose(1, 2)


def errors(attention, device, dropout, low):
    """Return the relative error of the output and of every gradient, by name."""
    x = layer(device)
    keep = kept(attention, x, dropout, low) if dropout else True
    found = {name: tensor.clone().requires_grad_() for name, tensor in x.items()}
    expected = {name: tensor.double().requires_grad_() for name, tensor in x.items()}
    output, reference = attend(attention, found, dropout, low), by_the_definition(expected, keep, dropout)
    output.float().square().sum().backward()
    reference.square().sum().backward()
    pairs = {"output": (output, reference)} | {name: (found[name].grad, expected[name].grad) for name in x}
    return {name: ((got - right).norm() / right.norm()).item() for name, (got, right) in pairs.items()}
