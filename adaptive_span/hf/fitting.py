"""Learn the spans of a model whose weights stay as they are: each step reads one text and moves the spans alone.

The loss is that of the text in nats per token, plus λ times the share of the keys and values that a cache has to keep.
A key/value head keeps what the longest of its query heads needs, so that only the longest one has a cost. λ is given
(`penalty`), or found on the way (`budget`): the share shall fall by the same factor with each step to the budget, then
stay there. λ rises where the share is above that curve, and falls where it is below. So a fit is soon where texts cost
less, and where heads differ in what they need.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adaptive_span.errors import UserError
from adaptive_span.hf.heads import LayerHeads
from adaptive_span.hf.learned import HeadSpans
from adaptive_span.hf.losses import text_loss
from adaptive_span.hf.text import Sample

FALL = 0.5  # of the steps, in which the share falls to the budget
NEAR, FAR = 20.0, 1.0  # what λ gains at once, and with every step, per share above the curve
BETAS = (0.9, 0.95)  # Adam's: spans move far in few steps
SETTLED_AFTER, SETTLED_WITHIN = 20, 1.0  # steps in which no span moved by so many tokens, once the share has fallen


@dataclass(frozen=True)
class Asked:
    """Hold the settings of a fit.

    Attributes:
        steps: how many texts are read.
        rate: the fraction of the context that a span moves at most in a step, until the rate falls to 0.
        budget: the share of keys and values to end at, or None.
        penalty: λ, in nats per token for all keys and values, or None.
    """

    steps: int
    rate: float
    budget: float | None
    penalty: float | None


class Fit:
    """Fit the spans of a model, a step at a time.

    Args:
        model: its weights are frozen.
        layers: the layers whose spans are fitted.
        spans: theirs.
        texts: what they are fitted to, without end.
        generator: what draws the texts.
        asked: the settings.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[LayerHeads],
        spans: Sequence[HeadSpans],
        texts: Iterator[Sample],
        generator: torch.Generator,
        asked: Asked,
    ):
        self.model, self.spans, self.asked = model, spans, asked
        self.texts, self.generator = texts, generator
        self.kv_heads = [layer.kv_heads for layer in layers]
        self.fractions = [each.span.fraction.requires_grad_() for each in spans]
        self.adam = torch.optim.Adam(self.fractions, lr=asked.rate, betas=BETAS)
        self.step, self.seconds = 0, 0.0  # seconds: what these steps have taken
        self.price = 0.0  # what λ has gained step by step
        self.penalty = 0.0  # λ of the last step
        self.before: list[Tensor] = []  # spans, some steps ago
        self.cost, self.share = 1.0, 1.0  # of all keys and values, before the next step
        self._look()

    @property
    def is_over(self) -> bool:
        """Return whether all steps are made, or the spans have settled."""
        return self.step >= self.asked.steps or self._settled

    def advance(self) -> dict[str, float]:
        """Read one text and move the spans.

        Returns:
            `loss` in nats per token, `share` of keys and values before the update, and `penalty`, λ.

        Raises:
            UserError: The loss is not finite.
        """
        started = time.monotonic()
        for group in self.adam.param_groups:
            group["lr"] = self.asked.rate * min(1.0, 2 * (1 - self.step / self.asked.steps))
        if self.step % SETTLED_AFTER == 0:
            self.before = [fraction.detach().clone() for fraction in self.fractions]
        tokens, first = next(self.texts)
        self.penalty = self._next_penalty(self.cost)
        loss = text_loss(self.model, tokens.to(self.model.device), first)
        (loss + self.penalty * self._cost()).backward()
        self.adam.step()
        self.adam.zero_grad()
        for each in self.spans:
            each.span.clamp_()
        share, value = self.share, self._look(loss.detach())
        self.step += 1
        self.seconds += time.monotonic() - started
        return {"loss": value, "share": share, "penalty": self.penalty}

    @torch.no_grad()
    def _look(self, loss: Tensor | None = None) -> float:
        """Read what the next step has to know, and return the loss of this one. It waits for the device once.

        Raises:
            UserError: the loss is not finite.
        """
        effective = [each.span.effective() for each in self.spans]
        kept = torch.cat([each.kept(heads) for each, heads in zip(self.spans, self.kv_heads, strict=True)])
        share, cost = kept.mean(), self._cost()
        first = torch.stack([share.new_zeros(()) if loss is None else loss.float(), cost, share])
        told: list[float] = torch.cat([first, *effective]).tolist()
        value, self.cost, self.share, *spans = told
        if not value < float("inf"):
            raise UserError(f"the loss of step {self.step + 1} is {value}; the model gives no numbers for this text")
        known = iter(spans)
        for each, looks in zip(self.spans, effective, strict=True):
            each.remember([next(known) for _ in looks])
        return value

    @torch.no_grad()
    def meet_budget(self) -> float:
        """Move all spans by one number of tokens, so that the share is the budget, and return that number.

        It is small, since λ has led there, unless the steps were too few.
        """
        if self.asked.budget is None:
            return 0.0
        fitted, low, high, middle = [f.detach().clone() for f in self.fractions], -1.0, 1.0, 0.0
        for _ in range(40):
            middle = (low + high) / 2
            for fraction, at in zip(self.fractions, fitted, strict=True):
                fraction.copy_((at + middle).clamp(0, 1))
            self._look()
            low, high = (low, middle) if self.share > self.asked.budget else (middle, high)
        return middle * self.spans[0].span.max_span

    def state_dict(self) -> dict[str, Any]:
        """Return all that a fit resumes from, to the same bits."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "price": self.price,
            "penalty": self.penalty,
            "spans": [fraction.detach() for fraction in self.fractions],
            "before": self.before,
            "adam": self.adam.state_dict(),
            "texts": self.generator.get_state(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what `state_dict` returned."""
        self.step, self.price, self.before = state["step"], state["price"], list(state["before"])
        self.seconds = state["seconds"]
        self.penalty = state["penalty"]
        for fraction, stored in zip(self.fractions, state["spans"], strict=True):
            fraction.copy_(stored)
        self.adam.load_state_dict(state["adam"])
        self.generator.set_state(state["texts"])
        self._look()

    @property
    def _settled(self) -> bool:
        if self.step < FALL * self.asked.steps + SETTLED_AFTER or self.step % SETTLED_AFTER:
            return False
        moved = torch.stack([(a - b).abs().max() for a, b in zip(self.fractions, self.before, strict=True)])
        return bool(moved.max() * self.spans[0].span.max_span < SETTLED_WITHIN)

    def _next_penalty(self, cost: float) -> float:
        """Return λ for the next step, by the present cost: that is the share, but for spans beyond the context."""
        if self.asked.penalty is not None:
            return self.asked.penalty
        assert self.asked.budget is not None
        fallen = min(1.0, self.step / (FALL * self.asked.steps))
        above = cost - math.pow(self.asked.budget, fallen)
        self.price = max(0.0, self.price + FAR * above)
        return max(0.0, self.price + NEAR * above)

    def _cost(self) -> Tensor:
        """Return the mean over all key/value heads of what the longest of its query heads needs, per context."""
        longest = [f.view(heads, -1).max(1).values for f, heads in zip(self.fractions, self.kv_heads, strict=True)]
        spans = self.spans[0]
        return torch.cat(longest).mean() + (spans.span.ramp + spans.sinks) / spans.span.max_span
