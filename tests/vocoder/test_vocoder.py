"""Vocoders: copy-synthesis restores the mel, a stream continues its wave, BigVGAN equals the package's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bigvgan import BigVGAN
from bigvgan.bigvgan import load_hparams_from_json
from bigvgan.env import AttrDict
from safetensors.torch import load_file

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.audio.seam import seam_db
from sf_lightning.model.pretrained import WeightsOrigin
from sf_lightning.vocoder.bigvgan import BigVGANVocoder
from sf_lightning.vocoder.config import VocoderConfig
from sf_lightning.vocoder.files import TrainedVocoder, save_vocoder
from sf_lightning.vocoder.generator import GeneratorConfig, context_frames
from sf_lightning.vocoder.griffin_lim import GriffinLim
from tests.toys.audio import synthetic_voice
from tests.toys.networks import SMALL_BIGVGAN


@pytest.fixture
def mel() -> torch.Tensor:
    """Returns two seconds of log-mel [1, 200, 80]."""
    return MelSpectrogram(MelConfig())(torch.from_numpy(synthetic_voice(2.0))[None])


def test_griffin_lim_restores_the_mel(mel: torch.Tensor) -> None:
    wave = GriffinLim(MelConfig()).decode(mel)
    assert wave.shape == (1, 200 * 160)
    again = MelSpectrogram(MelConfig())(wave)
    assert (again - mel).abs().mean() < 0.2
    assert (again.roll(3, 1) - mel).abs().mean() > 0.3  # a shift of three frames is detected


def test_griffin_lim_is_deterministic_and_independent_of_the_batch(mel: torch.Tensor) -> None:
    vocoder = GriffinLim(MelConfig())
    alone = vocoder.decode(mel)
    assert torch.equal(alone, vocoder.decode(mel))
    batch = vocoder.decode(torch.cat([mel, mel.flip(1)]))
    torch.testing.assert_close(batch[:1], alone, atol=1e-3, rtol=0)


def test_a_continued_wave_has_no_click_between_chunks() -> None:
    vocoder = GriffinLim(MelConfig())
    voices = np.stack([synthetic_voice(2.0, 90 + 40 * i, seed=i) for i in range(6)])
    mel = MelSpectrogram(MelConfig())(torch.from_numpy(voices))
    edges = torch.arange(24, 200, 24) * 160
    waves, alone = [], []
    for start in range(0, 200, 24):
        chunk = mel[:, max(0, start - vocoder.left) : start + 24 + vocoder.right]
        past_frames = start - max(0, start - vocoder.left)
        past = torch.cat(waves, 1)[:, -past_frames * 160 :] if past_frames else torch.zeros(len(mel), 0)
        new = min(24, 200 - start)
        waves.append(vocoder.extend(chunk, past, new))
        alone.append(vocoder.decode(mel[:, start : start + 24]))
    joined, cut = torch.cat(waves, 1), torch.cat(alone, 1)
    assert joined.shape == (len(mel), 200 * 160)
    joined_db, cut_db = (torch.stack([seam_db(w, edges, 16000) for w in many]).mean() for many in (joined, cut))
    assert joined_db < 2.0 and cut_db > joined_db + 3


@torch.inference_mode()
def test_bigvgan_equals_the_package_to_1e_6(bigvgan: Path, mel: torch.Tensor) -> None:
    theirs = BigVGAN(AttrDict(SMALL_BIGVGAN))
    theirs.load_state_dict(torch.load(bigvgan / "bigvgan_generator.pt")["generator"])
    ours = VocoderConfig(checkpoint=str(bigvgan)).make(MelConfig())
    wave = ours.decode(mel)
    assert wave.abs().mean() > 1e-3
    torch.testing.assert_close(wave, theirs.eval()(mel.transpose(1, 2))[:, 0], atol=1e-6, rtol=0)


@torch.inference_mode()
def test_exported_weights_give_the_same_wave_in_the_package(tmp_path: Path, mel: torch.Tensor) -> None:
    torch.manual_seed(0)
    config = GeneratorConfig(channels=32, kernel_sizes=(3, 7))
    made = BigVGANVocoder(config.hyperparameters(MelConfig()), MelConfig())
    for parameter in made.parameters():
        parameter.mul_(1.5)
    wave = made.eval().decode(mel)
    assert wave.abs().mean() > 1e-3
    save_vocoder(
        tmp_path / "out",
        TrainedVocoder(made.generator.state_dict(), config, MelConfig(), WeightsOrigin(1, True)),
        "card",
    )
    theirs = BigVGAN(load_hparams_from_json(tmp_path / "out" / "config.json"))
    theirs.load_state_dict(load_file(tmp_path / "out" / "bigvgan_generator.safetensors"))
    torch.testing.assert_close(theirs.eval()(mel.transpose(1, 2))[:, 0], wave, atol=1e-6, rtol=0)
    again = VocoderConfig(checkpoint=str(tmp_path / "out")).make(MelConfig())
    torch.testing.assert_close(again.decode(mel), wave, atol=1e-6, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize(
    "config",
    [
        GeneratorConfig((10, 16), (20, 32), 16, (3,), (1,)),
        GeneratorConfig((8, 5, 4), (16, 11, 8), 16, (3, 7), (1, 3)),
        GeneratorConfig((2, 4, 4, 5), (4, 8, 8, 11), 16),
    ],
)
def test_the_context_is_exact_to_the_frame(config: GeneratorConfig) -> None:
    vocoder = BigVGANVocoder(config.hyperparameters(MelConfig()), MelConfig()).eval()
    middle = vocoder.right + 4
    mel = torch.zeros(1, 2 * middle + 1, 80)
    mel[:, middle] = torch.nan  # which reaches every sample that depends on it
    affected = vocoder.decode(mel)[0].isnan().view(-1, 160).any(1).nonzero()[:, 0]
    assert [int(affected[0]), int(affected[-1])] == [middle - vocoder.left, middle + vocoder.right]


@torch.inference_mode()
def test_a_frame_beyond_the_context_changes_no_sample_and_one_within_does(bigvgan: Path) -> None:
    vocoder = BigVGANVocoder.from_checkpoint(bigvgan, MelConfig())
    reach = context_frames(SMALL_BIGVGAN)
    mel = torch.randn(1, 4 * reach, 80, generator=torch.Generator().manual_seed(0))
    before = vocoder.decode(mel)
    middle = 2 * reach
    mel[:, middle] += 100.0
    changed = (vocoder.decode(mel) - before).abs()[0].view(-1, 160).amax(1) > 0
    frames = changed.nonzero()[:, 0]
    assert middle - reach <= frames.min() and frames.max() <= middle + reach
    assert frames.min() < middle - reach // 2  # the bound is tight to a factor of two


@torch.inference_mode()
def test_bigvgan_streamed_with_its_context_equals_the_whole(bigvgan: Path) -> None:
    vocoder = BigVGANVocoder.from_checkpoint(bigvgan, MelConfig())
    mel = torch.randn(1, 120, 80, generator=torch.Generator().manual_seed(0))
    whole = vocoder.decode(mel)
    for start in range(0, 120, 24):
        first = max(0, start - vocoder.left)
        chunk = mel[:, first : start + 24 + vocoder.right]
        wave = vocoder.extend(chunk, whole[:, first * 160 : start * 160], 24)
        torch.testing.assert_close(wave, whole[:, start * 160 : (start + 24) * 160], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_mels": 100}, "its num_mels is 100, the mel of this run has 80"),
        ({"sampling_rate": 24000}, "its sampling_rate is 24000, the mel of this run has 16000"),
        ({"upsample_rates": [5, 4, 4, 3]}, "multiply to 240, the hop length is 160"),
    ],
)
def test_a_vocoder_of_another_mel_is_refused_with_both_values(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BigVGANVocoder(SMALL_BIGVGAN | change, MelConfig())


def test_a_missing_vocoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"vocoder: no file or folder .*g.pt"):
        VocoderConfig(checkpoint=str(tmp_path / "g.pt")).make(MelConfig())
