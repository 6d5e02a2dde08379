"""A short checksum of a model's weights, by which spans know the model that they were fitted to."""

import hashlib

import torch
from transformers import PreTrainedModel

SAMPLE = 16  # numbers of each weight


def fingerprint(model: PreTrainedModel) -> str:
    """Return a checksum of the names and shapes of all weights, and of a few numbers of each, evenly spaced.

    Numbers are rounded to bfloat16, so that weights have the same fingerprint in 32 bits and as rounded to bfloat16.
    It tells models and training runs apart. It does not show that a single number has been changed.

    Args:
        model: any model; its weights are not changed.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        numbers = weight.detach().reshape(-1)
        places = torch.arange(SAMPLE, device=numbers.device) * (len(numbers) - 1) // (SAMPLE - 1)
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(repr(numbers[places].to(torch.bfloat16).tolist()).encode())
    return digest.hexdigest()[:16]
