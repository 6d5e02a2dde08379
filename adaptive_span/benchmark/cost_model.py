"""Compute what a training step costs on a GPU, by a formula, from what the step was counted to ask for.

The kernels of a step take

    FLOPs of products / (rate of products · PRODUCTS)
    + elements of attention · ELEMENT, with heads that look TILE tokens further than they do
    + bytes of everything else / (bandwidth · BANDWIDTH)
    + launches · LAUNCH

and a step takes as long as its kernels, or as the host needs to launch them (launches · HOST) where that is more,
unless they are launched as one graph. The constants were fitted to steps measured on one H200
(docs/benchmarks/h200-2026-11-27-graphs.json), which the formula gives within 5 %. An H200's rates in bf16 are measured,
those in TF32 and fp32 are what these steps leave for products; rates of other cards follow from their data sheets.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from adaptive_span.config.model_schema import ModelConfig

PRODUCTS = 0.87  # of the rate of a large matrix product
BANDWIDTH = 0.84  # of the rate of a large copy
LAUNCH = 3.7e-6  # seconds of the GPU that a kernel takes however small it is, and the gap before it
HOST = 104e-6  # seconds of the host for a launch, with all that Python does around it
ELEMENT = 13.9e-12  # seconds of an H200 for a query's look at one key, forward and backward, in heads of 96 in bf16
TILE = 176  # tokens that kernels look at in vain beside those that a head sees: its tiles' edges
FP32 = 1.5  # times as long for an element in fp32, each product of which is three in TF32; in TF32 it takes no longer

GB, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Card:
    """A GPU."""

    name: str
    memory: float  # GiB that a program may have
    bandwidth: float  # bytes per second of a large copy, read and written
    products: Mapping[str, float]  # operations per second of a large matrix product, in each precision
    lanes: float  # multiprocessors · clock, by which attention's kernels are bound, in those of an H200
    link: float  # bytes per second from one such GPU to others of its machine
    measured: bool = False  # on such a card, by this project


def _products(bf16: float, tf32: float, fp32: float) -> dict[str, float]:
    return {"bf16": bf16 * TERA, "tf32": tf32 * TERA, "fp32": fp32 * TERA}


CARDS = {
    "h200": Card("H200", 139, 4.3e12, _products(790, 243, 51), 1.0, 450 * GB, measured=True),
    "h100": Card("H100 SXM", 78, 3.0e12, _products(790, 243, 51), 1.0, 450 * GB),
    "a100": Card("A100 SXM 80 GB", 79, 1.75e12, _products(255, 128, 18), 108 * 1.41 / (132 * 1.755), 300 * GB),
    "4090": Card("RTX 4090", 23.5, 0.92e12, _products(158, 79, 70), 128 * 2.5 / (132 * 1.755), 25 * GB),
}


@dataclass(frozen=True)
class Demand:
    """What some kernels ask for: launches, bytes moved, floating-point operations."""

    launches: int
    bytes: float
    flops: float

    def __add__(self, other: "Demand") -> "Demand":
        return Demand(self.launches + other.launches, self.bytes + other.bytes, self.flops + other.flops)


def seconds(
    parts: Mapping[str, Demand], elements: float, head_size: int, precision: str, card: Card
) -> dict[str, float]:
    """Return the seconds that each part of a step takes on the GPU.

    Args:
        parts: What each part asks for.
        elements: Elements that attention visits, as `visited` counts them.
        head_size: Numbers per head.
        precision: Of matrix products.
        card: The GPU.
    """
    return {part: _seconds(part, asked, elements, head_size, precision, card) for part, asked in parts.items()}


def _seconds(part: str, asked: Demand, elements: float, head_size: int, precision: str, card: Card) -> float:
    launching = asked.launches * LAUNCH
    if part == "matrix products":
        return launching + asked.flops / (card.products[precision] * PRODUCTS)
    if part == "attention kernels":
        slower = FP32 if precision == "fp32" else 1.0
        # Of an element's cost 0.4 go to its mask, exponential and dropout, whatever the size of the head.
        return launching + elements * ELEMENT * slower * (0.4 + 0.6 * head_size / 96) / card.lanes
    return launching + asked.bytes / (card.bandwidth * BANDWIDTH)


def visited(model: ModelConfig, effective: float, heads: int, rows: int, edges: int = TILE) -> float:
    """Return how many elements (pairs of a query and a key) a step's attention visits.

    Args:
        model: Sizes of the model.
        effective: Sum of all heads' effective spans, in tokens.
        heads: Number of heads, over all layers.
        rows: Rows of the batch.
        edges: Tokens per head that kernels visit in vain.
    """
    return rows * model.block_size * (effective + heads * (edges + model.memory_size))


def host(launches: int, graphs: bool) -> float:
    """Return the seconds that the host needs to launch a step."""
    return 0.0 if graphs else launches * HOST


def exchange(parameters: int, processes: int, card: Card) -> float:
    """Return the seconds in which the GPUs of one machine add up their gradients, in fp32."""
    return 2 * 4 * parameters * (processes - 1) / processes / card.link
