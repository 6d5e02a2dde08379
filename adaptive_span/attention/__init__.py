"""Attention over the positions before each query, as far as each head's learned span: one signature, chosen by name.

`attend(query, context, positions, spans, ramp, limits, dropout, memory)` returns the heads' outputs, (B, H, M, D):

- query (B, H, M, D), of the present block.
- context: keys and values of the past and the present (see `context.py`).
- positions (D, L): one learned vector a distance, oldest first (column −1 is the position just before the query).
- spans (H,): z of each head in tokens, exact, on the device; None where every head looks at all L positions.
- ramp: tokens over which the soft mask falls from 1 to 0.
- limits: for each head a whole number of tokens, known to the host, that its effective span does not exceed.
- dropout: probability with which an attention weight is dropped; 0 outside training.
- memory: persistent keys (H, D, N) and values (H, N, D), or None.

A head attends to distances d = 1 … L with the score (q·k + q·p_d) / sqrt(D) and to its memory with the score
q·k / sqrt(D); its weights are the softmax of score + log m(d) over both together, where m = 1 for the memory.
"""

from collections.abc import Callable

from torch import Tensor

from adaptive_span.attention import banded, dense
from adaptive_span.attention.context import Context, HiddenStates, KeysValues

Attend = Callable[..., Tensor]


def runs_here(name: str) -> bool:
    """Whether this machine can run the implementation of that name."""
    return name in ("dense", "banded")


def choose(name: str) -> Attend:
    """The implementation of that name; `auto` is the fastest one that runs everywhere."""
    return {"auto": banded.attend, "dense": dense.attend, "banded": banded.attend}[name]


__all__ = ["Attend", "Context", "HiddenStates", "KeysValues", "choose", "runs_here"]
