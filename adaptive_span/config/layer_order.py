"""Decide in which order attention and feed-forward blocks follow each other."""

from adaptive_span.errors import UserError


def block_order(layer_order: str | None, num_layers: int, ffn_size: int) -> str:
    """Write out `model.layer_order` for a model of these sizes.

    Returns:
        A letter per block, from the input on: a for attention, f for feed-forward.

    Raises:
        UserError: The order does not fit the sizes.

    Source: sandwich is from arXiv 1911.03864, with half of the layers taken apart.
    """
    if not ffn_size:
        if layer_order is not None:
            raise UserError(
                f"model.layer_order={layer_order} orders attention and feed-forward blocks, but "
                f"model.ffn_size=0 leaves out the feed-forward; take model.layer_order=null"
            )
        return "a" * num_layers
    if layer_order is None:
        return "af" * num_layers
    if layer_order == "sandwich":
        apart = num_layers // 2
        return "a" * apart + "af" * (num_layers - apart) + "f" * apart
    if sorted(layer_order) != ["a"] * num_layers + ["f"] * num_layers:
        raise UserError(
            f"model.layer_order={layer_order} must be sandwich, or hold model.num_layers={num_layers} times a "
            f"(attention) and as often f (feed-forward), like {'a' * num_layers + 'f' * num_layers}"
        )
    return layer_order
