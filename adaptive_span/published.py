"""The parameters of the original project's checkpoints, by this project's names."""

import re

from torch import Tensor

_RENAME = (
    (r"^module\.", ""),
    (r"^key_pe$", "positions"),
    (r"^in_emb\.", "embedding."),
    (r"^out_emb\.", "output."),
    (r"\.attn\.attn\.adaptive_span\._mask\.current_val$", ".attention.span.fraction"),
    (r"\.attn\.proj_query\.", ".attention.query."),
    (r"\.attn\.proj_key\.", ".attention.key."),
    (r"\.attn\.proj_val\.", ".attention.value."),
    (r"\.attn\.proj_out\.", ".attention.output."),
    (r"\.norm1\.", ".attention_norm."),
    (r"\.norm2\.", ".feed_forward_norm."),
    (r"\.ff\.fc1\.", ".feed_forward.expand."),
    (r"\.ff\.fc2\.", ".feed_forward.contract."),
)


def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names and shapes → ours. The constant ramps that were saved among the parameters are left out."""
    renamed = {}
    for name, tensor in tensors.items():
        if name.endswith("._mask.mask_template"):
            continue
        for pattern, ours in _RENAME:
            name = re.sub(pattern, ours, name)
        if name.endswith("span.fraction"):
            tensor = tensor.flatten()  # (H, 1, 1) → (H,)
        elif name == "positions":
            tensor = tensor.squeeze(0)  # (1, D, L) → (D, L)
        renamed[name] = tensor
    return renamed
