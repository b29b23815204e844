"""The mel spectrogram equals BigVGAN's, computed whole or block by block."""

import pytest
import torch

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from tests.toys.audio import synthetic_voice


@pytest.mark.parametrize("seconds", [0.03, 0.5, 1.2345, 3.0])
def test_mel_equals_bigvgan_to_1e_5(seconds: float) -> None:
    from bigvgan.meldataset import mel_spectrogram

    wave = torch.from_numpy(synthetic_voice(seconds))[None]
    theirs = mel_spectrogram(wave, 1024, 80, 16000, 160, 640, 0, 8000).transpose(1, 2)
    ours = MelSpectrogram(MelConfig())(wave)
    assert ours.shape == theirs.shape == (1, wave.shape[1] // 160, 80)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_pieces_with_their_context_give_the_frames_of_the_whole() -> None:
    config = MelConfig()
    mel = MelSpectrogram(config)
    wave = torch.from_numpy(synthetic_voice(0.24 * 4))[None]
    padded = torch.nn.functional.pad(wave[:, None], (config.pad, config.pad), mode="reflect")[0, 0]
    size = 24 * config.hop_length
    pieces = padded.unfold(0, size + 2 * config.pad, size)
    torch.testing.assert_close(mel.frames(pieces).flatten(0, 1), mel(wave)[0], atol=1e-6, rtol=0)


def test_mel_under_bf16_autocast_is_that_of_fp32() -> None:
    wave = torch.from_numpy(synthetic_voice(0.5))[None]
    mel = MelSpectrogram(MelConfig())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mel(wave), mel(wave.float()))
        assert mel(wave).dtype == torch.float32


def test_a_wave_too_short_for_its_edges_is_refused_with_both_lengths() -> None:
    with pytest.raises(ValueError, match=r"wave has 400 samples: a mel needs at least 433"):
        MelSpectrogram(MelConfig())(torch.zeros(1, 400))


@pytest.mark.parametrize(
    ("change", "message"), [({"f_max": 9000.0}, "f_max is 9000"), ({"hop_length": 700}, "hop_length 700")]
)
def test_invalid_mel_settings_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MelConfig(**change)
