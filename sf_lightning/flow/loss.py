"""The conditional flow matching loss."""

from torch import Tensor


def flow_matching_loss(velocity: Tensor, dx_t: Tensor, valid: Tensor) -> Tensor:
    """Returns the loss of each block, [M]; that of a batch is their mean.

    The squared error of the velocity over valid frames, divided by the constant W F. Dividing by a constant,
    and not by the number of valid frames, lets every frame weigh the same on every rank and in every pack.

    Args:
        velocity: What the network says, [M, W, F].
        dx_t: What the path says, [M, W, F].
        valid: Which frames count, bool [M, W].
    """
    error = (velocity.float() - dx_t.float()).square()
    # `where` and not a product: what the network says under padding must not matter, not even if it is NaN.
    return error.where(valid[..., None], 0).mean(dim=(1, 2))
