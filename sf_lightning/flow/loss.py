"""The conditional flow matching loss."""

from torch import Tensor


def flow_matching_loss(velocity: Tensor, dx_t: Tensor, valid: Tensor) -> Tensor:
    """Returns the squared error of the velocity over valid frames, divided by the constant M W F.

    Dividing by a constant, and not by the number of valid frames, lets every frame weigh the same on every
    rank and in every pack.

    Args:
        velocity: What the network says, [M, W, F].
        dx_t: What the path says, [M, W, F].
        valid: Which frames count, bool [M, W].
    """
    error = (velocity.float() - dx_t.float()).square() * valid[..., None]
    return error.sum() / error.numel()
