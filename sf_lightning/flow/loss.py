"""The conditional flow matching loss."""

from torch import Tensor


def flow_matching_loss(velocity: Tensor, dx_t: Tensor, valid: Tensor) -> Tensor:
    """Returns the loss of each block, [M]; the loss of a batch is their mean.

    The loss is the squared error of the velocity over valid frames, divided by the constant W F. Dividing by a
    constant instead of the number of valid frames gives every frame the same weight on every rank and in every
    pack.

    Args:
        velocity: Predicted velocity, [M, W, F].
        dx_t: Velocity of the path, [M, W, F].
        valid: Frames that are not padding, bool [M, W].
    """
    error = (velocity.float() - dx_t.float()).square()
    # `where` instead of a product: the output under padding must not matter, not even if it is NaN.
    return error.where(valid[..., None], 0).mean(dim=(1, 2))
