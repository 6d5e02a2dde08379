"""A model of transformers with random weights, and a tokenizer of bytes: both are made at once."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN = "<begin>"


def tokenizer(begins: bool = False) -> PreTrainedTokenizerFast:
    """Every byte is a token; where `begins`, a token of its own stands before each text."""
    vocabulary = {symbol: n for n, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if begins:
        made.add_special_tokens([BEGIN])
        made.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", special_tokens=[(BEGIN, made.token_to_id(BEGIN))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=BEGIN if begins else None)


def llama(seed: int = 0) -> LlamaForCausalLM:
    """Two layers of four query heads and two key/value heads."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()
