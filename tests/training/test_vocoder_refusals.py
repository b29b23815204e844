"""Settings, data and checkpoints that a vocoder cannot be trained with: errors with both values."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.held_out import evenly_spaced_clips
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.segments import SegmentConfig
from sf_lightning.data.shards import ShardSet
from sf_lightning.training.optimizer import GANOptimizerConfig
from sf_lightning.vocoder.adversary import DiscriminatorConfig
from sf_lightning.vocoder.generator import GeneratorConfig
from tests.toys.decoder import decoder_data, decoder_module, fit_decoder
from tests.toys.trainer import QUIET_TRAINER
from tests.toys.vocoder import VOCODER_SETTINGS, VocoderLosses, fit_vocoder, vocoder_data, vocoder_module


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generator": GeneratorConfig((5, 4, 4, 3), (11, 8, 8, 5), 16)}, "multiply to 240, the hop length is 160"),
        (
            {"segments": SegmentConfig(frames=6)},
            r"segments.frames is 6, which are 960 samples: expected more than 1024",
        ),
        (
            {"discriminators": DiscriminatorConfig("cqt", cqt_octaves=9)},
            r"cqt_octaves is 9, which reaches 16742 Hz: .* 16000 Hz",
        ),
    ],
)
def test_sizes_that_do_not_match_are_refused_with_both_values(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vocoder_module(**change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GeneratorConfig((5, 4), (11,)), "2 upsample_rates, 1 upsample_kernel_sizes"),
        (lambda: GeneratorConfig((5,), (8,)), "upsample_kernel_sizes has 8 for a rate of 5"),
        (lambda: GeneratorConfig((10, 16), (20, 32), channels=18), "channels is 18: expected a multiple of 4"),
        (lambda: GANOptimizerConfig(decay=1.5), "optimizer.decay is 1.5"),
        (lambda: GeneratorConfig(kernel_sizes=()), "kernel_sizes are \\[\\]: expected one or more"),
        (lambda: GeneratorConfig(dilations=(0,)), "dilations are \\[0\\]: expected one or more, each 1"),
        (lambda: GANOptimizerConfig(learning_rate=-1), "optimizer.learning_rate is -1: expected more than 0"),
        (
            lambda: GANOptimizerConfig(discriminator_learning_rate=0.0),
            "discriminator_learning_rate is 0.0: expected",
        ),
        (lambda: GANOptimizerConfig(ema_decay=2), "optimizer.ema_decay is 2"),
        (lambda: GANOptimizerConfig(max_bad_steps=0), "max_bad_steps is 0"),
        (lambda: DiscriminatorConfig(width=0), "width is 0"),
        (lambda: DiscriminatorConfig(gain=0), "discriminators.gain is 0: expected more than 0"),
        (lambda: DiscriminatorConfig(periods=(6000,)), "periods are \\[6000\\]: expected one or more of 1 to 1024"),
    ],
)
def test_invalid_settings_are_refused_by_their_dataclass(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("module", "change", "message"),
    [
        ({"mel": MelConfig(f_max=7000.0)}, {}, "has mel f_max 8000.0, the model requires 7000.0: use other clips"),
        ({"mel": MelConfig(24000)}, {}, r"has mel sample_rate 16000, the model requires 24000"),
        (
            {"segments": SegmentConfig(frames=60)},
            {},
            "pack_frames is 96, data.max_pieces is 8: expected at least 168 and 2",
        ),
        (
            {"segments": SegmentConfig(frames=1000)},
            {"pack_frames": 4800},
            r"the longest has 2\d\d frames, expected 1000: lower --model.segments.frames",
        ),
    ],
)
def test_mismatched_data_is_refused_with_both_values(
    shards: ShardSet, module: dict, change: dict, message: str
) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        fit_vocoder(vocoder_module(**module), vocoder_data(shards, **change), 1)


def test_clips_shorter_than_a_segment_are_skipped_and_every_pack_holds_a_segment(
    shards: ShardSet, caplog: pytest.LogCaptureFixture
) -> None:
    # Clips have 150 to 202 frames; 408 is the smallest pack that always contains a piece of 180 frames.
    module = vocoder_module(segments=SegmentConfig(frames=180, per_pack=1))
    datamodule, notes = vocoder_data(shards, pack_frames=408, lanes=1), VocoderLosses()
    fit_vocoder(module, datamodule, 6, notes)
    assert caplog.text.count("clips of less than 180 frames are skipped") == 1
    assert not any(datamodule.skipped.values())  # they are not counted as broken
    lengths = {
        drawn.clip.key: len(drawn.clip.wave) // 160 for drawn in evenly_spaced_clips(shards, 23, ClipRequirements())
    }
    assert all(lengths[key] >= 180 for _, _, keys in notes.steps for key in keys if key)


def test_a_checkpoint_of_another_network_or_of_a_decoder_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    fit_vocoder(vocoder_module(), vocoder_data(shards), 1).save_checkpoint(tmp_path / "last.ckpt")
    other = GeneratorConfig((10, 16), (20, 32), channels=32, kernel_sizes=(3,), dilations=(1,))
    with pytest.raises(ValueError, match=r"--model.generator: the checkpoint has channels 16, this run has 32"):
        fit_vocoder(vocoder_module(generator=other), vocoder_data(shards), 2, ckpt_path=tmp_path / "last.ckpt")
    fit_decoder(tmp_path, decoder_module(), decoder_data(shards), 1)
    with pytest.raises(ValueError, match=r"--model.generator: the checkpoint has none: it is one of another kind"):
        fit_vocoder(vocoder_module(), vocoder_data(shards), 2, ckpt_path=tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"--model.init_from: .*last.ckpt is a decoder checkpoint"):
        vocoder_module(init_from=str(tmp_path / "last.ckpt")).load_initial_weights()


def test_initial_weights_of_other_sizes_are_refused(shards: ShardSet, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    fit_vocoder(vocoder_module(), vocoder_data(shards), 1).save_checkpoint(path)
    snake = replace(VOCODER_SETTINGS["generator"], activation="snake")
    with pytest.raises(ValueError, match=r"has activation snakebeta, this run has snake: expected equal"):
        vocoder_module(init_from=str(path), generator=snake).load_initial_weights()
    for change in ({"width": 1 / 16}, {"periods": (3, 2)}):  # the latter have weights of the same shapes
        others = replace(VOCODER_SETTINGS["discriminators"], **change)
        with pytest.raises(ValueError, match=r"has the discriminators .*, this run has .*: give the same"):
            vocoder_module(init_from=str(path), discriminators=others).load_initial_weights()


def test_lightnings_gradient_clipping_is_refused_with_the_option_to_use(shards: ShardSet) -> None:
    message = "gradient_clip_val is 1.0: expected none; for a vocoder, give --model.optimizer.clip_norm"
    with pytest.raises(ValueError, match=message):
        vocoder_module().check(L.Trainer(**QUIET_TRAINER, gradient_clip_val=1.0))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_unsupported_precisions_are_refused(shards: ShardSet, precision: Any) -> None:
    with pytest.raises(ValueError, match=rf"precision is {precision}: expected 32-true, or bf16"):
        fit_vocoder(vocoder_module(), vocoder_data(shards), 1, precision=precision)
