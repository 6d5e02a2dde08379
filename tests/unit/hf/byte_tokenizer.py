"""A tokenizer of bytes for models of 257 tokens, which is made at once."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

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
