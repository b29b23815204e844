"""Stored x-vectors: from the corpus through shards and packs to the training step."""

from pathlib import Path

import numpy as np
import pytest

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.build import build, fit_tokenizer
from sf_lightning.data.build_config import BuildConfig, SpeakerSpec
from sf_lightning.data.corpus import find_parts
from sf_lightning.data.lanes import Lane, LaneConfig, LaneState
from sf_lightning.data.packing import Batch, PackShape, pack_clips
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.shards import ShardSet
from sf_lightning.model.speaker import SpeakerConfig
from tests.toys.audio import write_corpus
from tests.toys.decoder import decoder_data, decoder_module, fit_decoder

WIDTH = 5


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Returns a set of six clips with x-vectors; two more clips with a broken and a missing one are skipped."""
    folder = tmp_path_factory.mktemp("x_vectors")
    audio = write_corpus(folder / "audio", clips=8)
    random = np.random.default_rng(0)
    for i, path in enumerate(sorted(audio.rglob("*.wav"))[:7]):
        x_vector = random.standard_normal(WIDTH) if i < 6 else np.full(WIDTH, np.nan)
        np.save(path.with_suffix(".speaker.npy"), x_vector.astype(np.float16))
    parts = find_parts(audio, 4)
    tokenizer = fit_tokenizer(parts, 50, MelConfig())
    config = BuildConfig(tokenizer, speaker=SpeakerSpec("elsewhere", WIDTH), shard_samples=4)
    build(parts, folder / "set", config)
    return ShardSet(folder / "set")


def test_clips_without_a_valid_x_vector_are_skipped_and_counted(stored: ShardSet) -> None:
    assert stored.samples == 6
    assert stored.manifest.skipped == {"x-vector": 1, "incomplete": 1}
    assert (stored.manifest.x_vectors, stored.manifest.x_vector_width) == ("elsewhere", WIDTH)


def test_each_piece_of_a_pack_has_the_x_vector_of_its_clip(stored: ShardSet) -> None:
    expected = {}
    for shard in range(2):
        for drawn in stored.read_samples(shard):
            expected[drawn["__key__"]] = drawn["speaker.npy"]
    lane = Lane([stored], 0, LaneConfig(0, 1, ClipRequirements(crop_samples=4000, x_vector_width=WIDTH)))
    stream = pack_clips(lane.draw_clips(LaneState()), PackShape(10, 24, 4, 4, MelConfig()))
    batch = Batch.from_packs([next(stream), next(stream)])
    assert batch.x_vector.shape == (8, WIDTH)
    for key, x_vector in zip(batch.keys, batch.x_vector.numpy(), strict=True):
        if key:
            assert x_vector.astype(np.float16).tobytes() == expected[key][-2 * WIDTH :]
        else:
            assert not x_vector.any()


def test_only_models_with_x_vectors_read_and_train_on_them(stored: ShardSet, tmp_path: Path) -> None:
    config = SpeakerConfig(channels=8, crop_seconds=0.25, x_vectors="elsewhere", x_vector_width=WIDTH)
    module = decoder_module(speaker=config)
    fit_decoder(tmp_path / "with", module, decoder_data(stored, lanes=1), 3)
    # Compared with the same run on zero x-vectors, because weight decay alone changes weights too.
    without = decoder_module(speaker=config)
    encode = without.model.encoder.forward
    without.model.encoder.forward = lambda mel, x: encode(mel, 0 * x)  # type: ignore[method-assign]
    fit_decoder(tmp_path / "zeros", without, decoder_data(stored, lanes=1), 3)
    trained, untrained = (run.model.dit.from_condition.weight[:, -WIDTH:] for run in (module, without))
    assert (trained - untrained).abs().max() > 1e-4
    fit_decoder(tmp_path / "without", decoder_module(), decoder_data(stored, lanes=1), 1)


@pytest.mark.parametrize(
    ("wants", "message"),
    [
        (("another", WIDTH), r"x-vectors \('elsewhere', 5\), the model requires \('another', 5\)"),
        (("elsewhere", 6), r"x-vectors \('elsewhere', 5\), the model requires \('elsewhere', 6\)"),
    ],
)
def test_x_vectors_of_another_encoder_or_width_are_refused_before_training(
    stored: ShardSet, tmp_path: Path, wants: tuple[str, int], message: str
) -> None:
    speaker = SpeakerConfig(channels=8, x_vectors=wants[0], x_vector_width=wants[1])
    with pytest.raises(ValueError, match=message):
        fit_decoder(tmp_path, decoder_module(speaker=speaker), decoder_data(stored), 1)


def test_a_model_with_x_vectors_refuses_a_set_without_them(shards: ShardSet, tmp_path: Path) -> None:
    speaker = SpeakerConfig(channels=8, x_vectors="elsewhere", x_vector_width=WIDTH)
    with pytest.raises(ValueError, match=r"has x-vectors \('', 0\), the model requires \('elsewhere', 5\)"):
        fit_decoder(tmp_path, decoder_module(speaker=speaker), decoder_data(shards), 1)
