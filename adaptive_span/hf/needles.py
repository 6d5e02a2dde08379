"""Does a model still find what was told long ago? The mean loss of a text hides it where it does not."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adaptive_span.hf import passkeys, text
from adaptive_span.hf.passkeys import Passkey

DISTANCES = 10


@torch.inference_mode()
def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
    context: int,
    trials: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Tell a model a number of five digits in a text, at ten distances, and ask for it at the end.

    A number is found where greedy decoding would write it: every token of it is the likeliest one after those before
    it, which one forward pass over the text with its answer tells. The same seed asks the same questions.

    Args:
        model: in evaluation mode.
        tokenizer: its own.
        ids: a text, (N,).
        context: tokens of a question with its text.
        trials: numbers per distance.
        seed: of the numbers, and of the places in the text.

    Returns:
        `distances` in tokens, evenly spaced; for each of them `found`, a fraction of the trials, and `nats` per token
        of the answers; `trials`.

    Raises:
        UserError: The text is shorter than the context, or that too short for a number and its question.
    """
    generator, first = torch.Generator().manual_seed(seed), len(text.start(tokenizer))
    some = text.calibration(tokenizer, ids, context, generator)
    drawn = [[passkeys.draw(tokenizer, generator) for _ in range(trials)] for _ in range(DISTANCES)]
    bounds = [passkey.distances(context, first) for row in drawn for passkey in row]
    low, high = max(low for low, _ in bounds), min(high for _, high in bounds)
    distances = [low + (high - low) * n // (DISTANCES - 1) for n in range(DISTANCES)]
    answers = [
        [answer(model, passkey.put(next(some).tokens, distance), passkey) for passkey in row]
        for distance, row in zip(distances, drawn, strict=True)
    ]
    return {
        "distances": distances,
        "found": [sum(right for right, _ in at) / trials for at in answers],
        "nats": [sum(nats for _, nats in at) / trials for at in answers],
        "trials": trials,
    }


def answer(model: PreTrainedModel, window: Tensor, passkey: Passkey) -> tuple[bool, float]:
    """Return whether greedy decoding would write the answer that a window ends in, and its nats per token."""
    tokens = window.to(model.device)
    size = len(passkey.answer)
    logits = model(tokens[None], use_cache=False).logits[0, -size - 1 : -1].float()  # (size, vocabulary)
    nats = functional.cross_entropy(logits, tokens[-size:])
    return bool((logits.argmax(1) == tokens[-size:]).all()), float(nats)


def sentence(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return what two measurements of the same questions say: whether retrieval fell, and at which distances."""
    asked, trials = before["distances"], before["trials"]
    counts = [(round(a * trials), round(b * trials)) for a, b in zip(before["found"], after["found"], strict=True)]
    fell = [(distance, *count) for distance, count in zip(asked, counts, strict=True) if count[1] < count[0]]
    if not any(first for first, _ in counts):
        was, now = (sum(each["nats"]) / len(asked) for each in (before, after))
        return (
            f"The model found no passkey before the fit either, so that these do not show whether retrieval fell; "
            f"answers took {was:.2f} nats per token before and take {now:.2f} after."
        )
    if not fell:
        return (
            f"Passkeys are found as before at all {len(asked)} distances, up to {asked[-1]:,} tokens: "
            f"{sum(b for _, b in counts)} of {trials * len(asked)}."
        )
    far = [f"{distance:,}" for distance, _, _ in fell]
    listed = f"{', '.join(far[:-1])} and {far[-1]}" if len(far) > 1 else far[0]
    return (
        f"Retrieval fell at {len(fell)} of {len(asked)} distances, {listed} tokens: of {trials * len(fell)} passkeys "
        f"there, {sum(a for _, a, _ in fell)} were found before and {sum(b for _, _, b in fell)} are found after."
    )
