"""What a forward pass costs, counted from the weights. Knows nothing of devices and clocks."""

from torch import nn

from sf_lightning.model.dit import DiT


def flops_per_frame(dit: DiT, longest: int | None = None) -> float:
    """Counts the floating point operations of one forward pass, per frame.

    With P weights in the matrices that every frame passes (`from_mel`, `from_condition`, query, key, value,
    output and feed-forward of each layer, `to_velocity`), width D and n_i keys seen by a query of layer i,

        2 P  +  sum_i 4 D n_i,    n_i = W * blocks of the span of layer i,

    the second term being the products of queries with keys and of their weights with values. What is done
    once per utterance (flow time, modulation) and what is no matrix product is left out. Training costs three
    times as much: the backward pass multiplies by each matrix twice.

    Args:
        dit: The network, on any device.
        longest: Blocks of the longest utterance: what a query of an unbounded span is taken to see, which is
            what the dense path multiplies. Bounded spans do not depend on it.

    Raises:
        ValueError: if a span is unbounded and `longest` is not given.
    """
    blocks = [len(span.offsets) if span.bounded else longest for span in dit.layout.spans]
    if None in blocks:
        raise ValueError("the layout has unbounded spans: `longest`, the blocks of an utterance, must be given")
    once = {*dit.time.modules(), *dit.modulations.modules()}
    weights = sum(m.weight.numel() for m in dit.modules() if isinstance(m, nn.Linear) and m not in once)
    keys = dit.layout.block_size * sum(each or 0 for each in blocks)
    return 2.0 * weights + 4.0 * dit.config.width * keys
