"""The share of recent steps whose gradient was clipped."""

import torch

from sf_lightning.training.optimizer import CLIP_WINDOW, ClippedSteps


def test_the_share_of_clipped_steps_covers_the_last_steps_also_after_a_resume() -> None:
    whole, first, again = ClippedSteps(), ClippedSteps(), ClippedSteps()
    norms = [torch.tensor(float(step % 3)) for step in range(CLIP_WINDOW + 10)]
    shares = [float(whole.update(norm, 1.5)) for norm in norms]
    assert shares[:3] == [0.0, 0.0, torch.tensor(1 / 3).item()] and 0.32 < shares[-1] < 0.34
    for norm in norms[:50]:
        first.update(norm, 1.5)
    again.load_state_dict(first.state_dict())
    assert again.state_dict() == first.state_dict()  # saved again before any step
    assert [float(again.update(norm, 1.5)) for norm in norms[50:]] == shares[50:]


def test_values_restored_from_a_checkpoint_move_to_the_device_of_the_norms() -> None:
    # A checkpoint is restored while the module is still on the CPU, so the device is unknown.
    steps = ClippedSteps()
    steps.load_state_dict([True, False])
    share = steps.update(torch.zeros((), device="meta"), 1.0)
    assert share.device.type == "meta" and all(value.device.type == "meta" for value in steps._last)
