"""Floating point operations of a forward pass, counted from the weights."""

from torch import nn

from sf_lightning.model.dit import DiT


def flops_per_frame(dit: DiT, longest: int | None = None) -> float:
    """Returns the floating point operations of one forward pass, per frame.

    With P weights in the matrices that are applied to every frame (`from_mel`, `from_condition`, query, key, value,
    output and feed-forward of each layer, `to_velocity`), width D and n_i keys seen by a query of layer i,

        2 P  +  sum_i 4 D n_i,    n_i = W * blocks of the span of layer i,

    where the second term is the products of queries with keys and of attention weights with values. Operations
    once per utterance (flow time, modulation) and operations other than matrix products are not counted. Training
    takes three times as many: the backward pass multiplies by each matrix twice.

    Args:
        dit: Network, on any device.
        longest: Blocks of the longest utterance, the span that the dense path computes for a query of an unbounded
            layer. Bounded spans do not depend on it.

    Raises:
        ValueError: if a span is unbounded and `longest` is not given.
    """
    blocks = [len(span.offsets) if span.bounded else longest for span in dit.layout.spans]
    if None in blocks:
        raise ValueError("the layout has unbounded spans: give `longest`, the blocks of the longest utterance")
    once = {*dit.time.modules(), *dit.modulations.modules()}
    weights = sum(m.weight.numel() for m in dit.modules() if isinstance(m, nn.Linear) and m not in once)
    keys = dit.layout.block_size * sum(count or 0 for count in blocks)
    return 2.0 * weights + 4.0 * dit.config.width * keys
