"""A short checksum of a model's weights, by which spans know the model that they were fitted to."""

import hashlib

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adaptive_span.hf.attention import SPANS

SAMPLE = 64  # numbers of each weight


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> str:
    """Return a checksum of the names and the shapes of all weights, and of a few numbers of each, evenly spaced.

    Numbers are rounded to bf16, so that it is the same in the precisions that a model is loaded in. It tells one model,
    and one revision, from another. It does not show that a single number has been changed.

    Args:
        model: with or without spans, which do not count.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if f".{SPANS}." not in name:
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(_sample(weight).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample(weight: Tensor) -> Tensor:
    numbers = weight.detach().reshape(-1)
    return numbers[:: max(1, len(numbers) // SAMPLE)][:SAMPLE].to("cpu", torch.bfloat16).contiguous()
