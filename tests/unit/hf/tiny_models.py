"""Tiny models of random weights, one of each architecture that spans are fitted to in the tests."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
}  # fmt: skip
NO_IDS: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": None},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8, "num_hidden_layers": 4},
    "gemma3_text": {
        "sliding_window": 16,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neox": {"num_attention_heads": 4},
    "olmo2": {},
}


def tiny(kind: str, **other: Any) -> PreTrainedModel:
    """Return a model of an architecture, as the names of transformers' configurations have it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 97} if kind == "gpt2" else SIZES
    config = CONFIG_MAPPING[kind](**sizes | NO_IDS | OWN[kind] | other)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    return model
