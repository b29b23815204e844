"""Training a vocoder on mels that a decoder generates: guided by the recording, seeded by the pack, validated."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.data.held_out import evenly_spaced_clips
from sf_lightning.data.packing import Batch
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.segments import SegmentConfig
from sf_lightning.data.shards import ShardSet
from sf_lightning.data.teacher import Teacher
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.layout import Layout
from tests.toys.decoder import decoder_batch, decoder_data, decoder_module, fit_decoder
from tests.toys.networks import randomize_weights, small_model
from tests.toys.trainer import QUIET_TRAINER
from tests.toys.vocoder import VocoderLosses, cut_segments, fit_vocoder, vocoder_data, vocoder_module

LAYOUT = Layout(4, 24, (0, 3), (1,))


@pytest.fixture(scope="module")
def decoder(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the checkpoint of a decoder whose output is not zero."""
    folder, module = tmp_path_factory.mktemp("decoder"), decoder_module()
    randomize_weights(module.model).train()
    fit_decoder(folder, module, decoder_data(shards), 1)
    return str(folder / "last.ckpt")


def two_packs(shards: ShardSet) -> Batch:
    return decoder_batch(shards, lanes=2)


def test_a_decoder_that_predicts_the_exact_velocity_gives_the_mel_of_the_recording(shards: ShardSet) -> None:
    batch, model = two_packs(shards), small_model(LAYOUT)
    x_1 = model.to_flow(model.mel.frames(batch.wave))

    def velocity(x: Tensor, t: Tensor, condition: Tensor, blocks: Blocks) -> Tensor:
        return (torch.cat([x_1] * (len(x) // len(x_1))) - x) / (1 - t[blocks.utterance, None, None])

    model.velocity = velocity  # type: ignore[method-assign]
    for guidance in (0.0, 0.7):
        made = Teacher(model, guidance, seed=0).predict_mels(batch)
        torch.testing.assert_close(made, model.mel.frames(batch.wave), atol=1e-3, rtol=0)


def test_generated_mels_depend_on_pack_seed_and_guidance_and_not_on_the_batch(shards: ShardSet) -> None:
    batch, model = two_packs(shards), small_model(LAYOUT)
    both = Teacher(model, 0.5, seed=0).predict_mels(batch)
    torch.rand(100)
    second = batch.packs[0].num_blocks
    alone = replace(
        batch,
        wave=batch.wave[second:],
        tokens=batch.tokens[second:],
        blocks=replace(
            batch.blocks[second:],
            utterance=batch.blocks.utterance[second:] - batch.packs[0].num_utterances,
            num_utterances=batch.packs[1].num_utterances,
        ),
        reference=batch.reference[batch.packs[0].num_utterances :],
        x_vector=batch.x_vector[batch.packs[0].num_utterances :],
        packs=batch.packs[1:],
    )
    valid = alone.blocks.valid
    made = Teacher(model, 0.5, seed=0).predict_mels(alone)
    torch.testing.assert_close(made[valid], both[second:][valid], atol=1e-4, rtol=0)
    for other in (Teacher(model, 0.5, seed=1), Teacher(model, 0.0, seed=0)):
        assert (other.predict_mels(alone) - made)[valid].abs().mean() > 1e-3


def test_a_segment_has_the_wave_of_the_clip_and_the_generated_mel(shards: ShardSet) -> None:
    batch, mel = two_packs(shards), MelSpectrogram(MelConfig())
    config = SegmentConfig(frames=20, per_pack=8)
    made = torch.arange(batch.wave.shape[0] * 24).float().view(-1, 24, 1).expand(-1, -1, 80)
    true, generated = cut_segments(batch, config), cut_segments(replace(batch, mels=made), config)
    assert torch.equal(true.wave, generated.wave)
    frames = mel.frames(batch.wave).flatten(0, 1)
    assert torch.equal(frames[generated.mel[..., 0].long()], true.mel)


def test_the_generated_mel_of_a_clip_is_complete_and_deterministic(shards: ShardSet) -> None:
    teacher = Teacher(small_model(LAYOUT), 0.5, seed=0)
    for number, drawn in enumerate(evenly_spaced_clips(shards, 3, ClipRequirements(crop_samples=4000))):
        made = teacher.predict_clip_mel(drawn, number, torch.device("cpu"))
        assert made.shape == (len(drawn.clip.wave) // 160, 80)
        assert torch.equal(made, teacher.predict_clip_mel(drawn, number, torch.device("cpu")))
        assert not torch.equal(made, teacher.predict_clip_mel(drawn, number + 1, torch.device("cpu")))


def test_a_run_on_generated_mels_resumes_with_identical_losses(
    shards: ShardSet, decoder: str, tmp_path: Path
) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def generated() -> Any:
        return vocoder_data(shards, mels="generated", decoder=decoder)

    whole, again, true = VocoderLosses(), VocoderLosses(), VocoderLosses()
    fit_vocoder(vocoder_module(), generated(), 6, Save(), whole)
    torch.manual_seed(99)
    fit_vocoder(vocoder_module(), generated(), 6, again, ckpt_path=tmp_path / "middle.ckpt")
    assert again.steps == whole.steps[3:]
    fit_vocoder(vocoder_module(), vocoder_data(shards), 1, true)
    assert true.steps[0][2] == whole.steps[0][2]  # the same clips
    assert true.steps[0][0] != whole.steps[0][0]  # on other mels


def test_a_run_does_not_resume_with_other_mels(shards: ShardSet, decoder: str, tmp_path: Path) -> None:
    path, generated = tmp_path / "generated.ckpt", {"mels": "generated", "decoder": decoder}
    fit_vocoder(vocoder_module(), vocoder_data(shards, **generated), 1).save_checkpoint(path)
    with pytest.raises(ValueError, match=r"mels are true, .* trained on mels that are generated by \w{16}: give"):
        fit_vocoder(vocoder_module(), vocoder_data(shards), 2, ckpt_path=path)
    # Validation does not train on the mels, so it accepts other ones.
    L.Trainer(**QUIET_TRAINER).validate(vocoder_module(), vocoder_data(shards), ckpt_path=path, verbose=False)
    content = torch.load(decoder, weights_only=True)
    next(value for name, value in content["state_dict"].items() if name.startswith("average.")).add_(1)
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"mels are generated by \w{16}, .* that are generated by \w{16}: give"):
        fit_vocoder(
            vocoder_module(),
            vocoder_data(shards, mels="generated", decoder=str(tmp_path / "other.ckpt")),
            2,
            ckpt_path=path,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mels": "generated"}, "data.mels is generated, data.decoder is None: expected a decoder with generated"),
        ({"decoder": "here"}, "data.mels is true, data.decoder is here: .* none with true ones"),
    ],
)
def test_generated_mels_without_a_decoder_and_a_decoder_without_them_are_refused(
    shards: ShardSet, change: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        vocoder_data(shards, **change)


def test_an_unsuitable_decoder_is_refused(shards: ShardSet, decoder: str, tmp_path: Path) -> None:
    generated = vocoder_data(shards, mels="generated", decoder=decoder)
    with pytest.raises(ValueError, match="only --trains=vocoder uses generated mels"):
        generated.check(decoder_module())
    with pytest.raises(ValueError, match=r"generates .*f_max=8000.*: expected .*f_max=7000.*, as --model.mel"):
        generated.check(vocoder_module(mel=MelConfig(f_max=7000.0)))
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere.ckpt"):
        vocoder_data(shards, mels="generated", decoder=str(tmp_path / "nowhere.ckpt")).check(vocoder_module())
    content = torch.load(decoder, weights_only=True)
    torch.save(content | {"tokenizer_digest": "abc"}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"has tokens of kmeans with digest \w+, the model requires digest abc"):
        vocoder_data(shards, mels="generated", decoder=str(tmp_path / "other.ckpt")).check(vocoder_module())
