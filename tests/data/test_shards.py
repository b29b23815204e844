"""Shard sets: readable as plain WebDataset, unusable clips are counted, nothing is overwritten."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.data.build import build
from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import find_parts
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import BadSample, decode_clip, read_speech, reference_crop
from sf_lightning.data.shards import Manifest, ShardSet
from sf_lightning.data.writer import npy_bytes
from sf_lightning.tokens.base import TokenizerSpec
from tests.toys.audio import synthetic_voice, write_corpus
from tests.toys.shards import raw_sample, tokenizer_beside

GOOD_ARRAY = npy_bytes(np.arange(7))
TOKENS = TokenizerSpec("kmeans", 50, 4, "")


def test_plain_webdataset_reads_a_shard_with_unchanged_audio_bytes(shards: ShardSet) -> None:
    url = str(shards.folder / "shard-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False))
    assert len(samples) == 5
    for sample in samples:
        speaker, clip = sample["__key__"].split("_")
        assert sample["wav"] == (shards.folder.parent / "audio" / speaker / f"{clip}.wav").read_bytes()
        assert json.loads(sample["json"])["speaker"] == speaker
        tokens = np.load(io.BytesIO(sample["tokens.npy"]))
        assert abs(len(tokens) * 640 - len(soundfile.read(io.BytesIO(sample["wav"]))[0])) < 640


def test_manifest_and_indices_match_the_tars(shards: ShardSet) -> None:
    manifest = shards.manifest
    assert shards.samples == 23 and [shard.samples for shard in manifest.shards] == [5, 5, 5, 5, 3]
    for number, info in enumerate(manifest.shards):
        with tarfile.open(shards.folder / info.name) as tar:
            in_tar = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
        index = shards.read_index(number)
        assert [row.key for row in index] == [raw["__key__"] for raw in shards.read_samples(number)]
        in_index = {f"{row.key}.{name}": tuple(found) for row in index for name, found in row.files.items()}
        assert in_index == in_tar
        assert info.tokens == sum(row.tokens for row in index)


def test_the_same_audio_gives_the_same_bytes(shards: ShardSet, tmp_path: Path) -> None:
    parts = find_parts(shards.folder.parent / "audio", 5)
    again = build(parts, tmp_path / "again", BuildConfig(tokenizer_beside(shards), shard_samples=5))
    assert again == shards.manifest


def test_the_lookup_table_is_the_mean_mel_of_each_token(shards: ShardSet) -> None:
    table = np.load(shards.folder / "lookup.npy")
    assert table.shape == (50, 4, 80)
    mel, patches = MelSpectrogram(MelConfig()), []
    import torch

    for number in range(len(shards.manifest.shards)):
        for raw in shards.read_samples(number):
            clip = decode_clip(raw, MelConfig(), 50, 4)
            frames = mel(torch.from_numpy(clip.wave)[None])[0].view(-1, 4, 80)
            patches += [frames[i].numpy() for i in np.flatnonzero(clip.tokens == 7)]
    # Not exactly equal: decoded clips are trimmed to whole tokens, which changes their last frames.
    assert len(patches) > 3
    assert np.abs(np.mean(patches, axis=0) - table[7]).mean() < 0.02


def test_broken_files_are_skipped_counted_and_reported(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = write_corpus(tmp_path / "audio", clips=3)
    bad = folder / "voice0"
    soundfile.write(bad / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(bad / "short.wav", np.ones(100) * 0.1, 16000)
    soundfile.write(bad / "nan.wav", np.full(16000, np.nan), 16000, subtype="FLOAT")
    (bad / "garbage.flac").write_bytes(b"garbage")
    (bad / "notes.txt").write_text("no audio")
    manifest = build(find_parts(folder, 100), tmp_path / "set", BuildConfig(tokenizer_beside(shards)))
    assert manifest.skipped == {"silent": 1, "too short": 1, "not finite": 1, "undecodable": 1}
    assert manifest.shards[0].samples == 3
    output = capsys.readouterr().out
    assert all(name in output for name in ("silent.wav", "short.wav", "nan.wav", "garbage.flac"))


def test_a_corpus_of_silence_writes_no_set(shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "silent.wav", np.zeros(16000), 16000)
    with pytest.raises(ValueError, match=r"no clip of the corpus can be used \(silent: 1\): no set was written"):
        build(find_parts(tmp_path / "audio", 100), tmp_path / "set", BuildConfig(tokenizer_beside(shards)))
    assert not list(tmp_path.glob("set*"))


def test_an_existing_set_is_never_overwritten(shards: ShardSet) -> None:
    before = (shards.folder / "manifest.json").read_bytes()
    with pytest.raises(
        FileExistsError, match=r"exists already, made by another build \(shard_samples was 5 and is 100"
    ):
        build(find_parts(shards.folder.parent / "audio", 5), shards.folder, BuildConfig(tokenizer_beside(shards)))
    assert (shards.folder / "manifest.json").read_bytes() == before


def test_dots_in_file_names_do_not_cut_keys(tmp_path: Path) -> None:
    for name in ("a.mic1.wav", "a.mic2.wav"):
        soundfile.write(tmp_path / name, synthetic_voice(0.5), 16000)
    assert [source.key for part in find_parts(tmp_path, 100) for source in part.read()] == ["a-mic1", "a-mic2"]
    soundfile.write(tmp_path / "a-mic1.wav", synthetic_voice(0.5), 16000)
    with pytest.raises(ValueError, match="would both get the key a-mic1"):
        find_parts(tmp_path, 100)


@pytest.mark.parametrize(("make", "message"), [(False, "no folder"), (True, "no audio under")])
def test_a_missing_or_empty_folder_is_reported(tmp_path: Path, make: bool, message: str) -> None:
    if make:
        (tmp_path / "audio").mkdir()
    with pytest.raises(FileNotFoundError, match=message):
        find_parts(tmp_path / "audio", 100)


def test_a_file_instead_of_a_folder_is_reported(shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match=r"clip.wav is a file: give its folder"):
        find_parts(tmp_path / "clip.wav", 100)
    parts = find_parts(shards.folder.parent / "audio", 5)
    with pytest.raises(FileExistsError, match=r"clip.wav exists already: delete it or give another --out"):
        build(parts, tmp_path / "clip.wav", BuildConfig(tokenizer_beside(shards)))


@pytest.mark.parametrize(
    ("requirements", "message"),
    [
        (
            ClipRequirements(tokens=replace(TOKENS, name="s3")),
            "has tokenizer kmeans, the model requires s3: .* train with --model.tokenizer=kmeans",
        ),
        (
            ClipRequirements(tokens=replace(TOKENS, vocabulary=6561)),
            "has vocabulary 50, the model requires 6561: .* --model.dit.vocabulary=50",
        ),
        (ClipRequirements(MelConfig(num_bands=100)), "has mel num_bands 80, the model requires 100"),
        (
            ClipRequirements(tokens=replace(TOKENS, frames_per_token=2)),
            "has frames per token 4, the model requires 2",
        ),
    ],
)
def test_a_set_of_another_tokenizer_or_mel_is_refused_with_both_values(
    shards: ShardSet, requirements: ClipRequirements, message: str
) -> None:
    ClipRequirements(tokens=TOKENS).check_set(shards)
    with pytest.raises(ValueError, match=message):
        requirements.check_set(shards)


def test_the_error_for_a_folder_without_manifest_has_the_build_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="sf-shards build --audio AUDIO --out"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match=r"format 99, sf-lightning .* reads up to 3"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: [], "as its format: expected an integer"),
        (lambda values: {}, "None as its format: expected an integer from 1 to 3"),
        (lambda values: values | {"shards": []}, "lists no sample"),
        (lambda values: values | {"tokenizer": {}}, "manifest.json is damaged .*build the set again"),
        (
            lambda values: values | {"shards": [values["shards"][0] | {"samples": "three"}]},
            r"manifest.shards\[0\].samples is 'three': expected int",
        ),
        (
            lambda values: values | {"shards": [values["shards"][0] | {"name": "../../x.tar"}]},
            "'../../x.tar': expected the name",
        ),
        (
            lambda values: values | {"shards": [values["shards"][0] | {"name": ".x.tar"}]},
            "expected the name of a tar",
        ),
    ],
)
def test_damaged_manifests_and_shard_names_outside_the_folder_are_refused(
    shards: ShardSet, tmp_path: Path, change: Callable[[dict], object], message: str
) -> None:
    manifest = json.loads((shards.folder / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(change(manifest)))
    with pytest.raises(ValueError, match=message):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "4 samples in the index, 5 in the manifest"),
        (lambda rows: [], "0 samples in the index"),  # a lane would look for a sample for ever
        (lambda rows: [[1, 2, 3, 4, 5, 6], *rows[1:]], "not an index: 'int' object has no attribute"),
        (lambda rows: [[3, *rows[0][1:]], *rows[1:]], "a value of the wrong type"),
        (lambda rows: [[*rows[0][:5], {"wav": [0, 10**10]}], *rows[1:]], r"is not within the \d+ bytes"),
        (lambda rows: [[*rows[0][:5], {"wav": [-5, 3]}], *rows[1:]], r"is not within the \d+ bytes"),
    ],
)
def test_a_damaged_index_is_refused(
    shards: ShardSet, tmp_path: Path, change: Callable[[list], list], message: str
) -> None:
    for name in ("manifest.json", "shard-000000.json"):
        (tmp_path / name).write_bytes((shards.folder / name).read_bytes())
    index = tmp_path / "shard-000000.json"
    index.write_text(json.dumps({"rows": change(json.loads(index.read_text())["rows"])}))
    with pytest.raises(
        ValueError, match=rf"shard-000000.json is damaged \(.*{message}.*--repair=true` makes it again"
    ):
        ShardSet(tmp_path).read_index(0)
    index.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard-000000.json is missing: .* makes it again"):
        ShardSet(tmp_path).read_index(0)


def test_audio_with_a_wrong_rate_or_length_in_its_header_is_undecodable() -> None:
    flac, slow = io.BytesIO(), io.BytesIO()
    soundfile.write(flac, synthetic_voice(1.0), 16000, format="FLAC")
    soundfile.write(slow, synthetic_voice(1.0), 1, format="WAV")  # over four hours at the rate in its header
    lie = bytearray(flac.getvalue())
    lie[21] |= 0x0F
    lie[22:26] = b"\xff" * 4  # 2^36 - 1 samples
    for audio in (bytes(lie), slow.getvalue()):
        try:
            assert len(read_speech(audio, MelConfig())) <= 16000
        except BadSample as error:
            assert error.cause == "undecodable"
    with pytest.raises(BadSample, match="audio at 1 Hz: expected 4000 to 768000"):
        read_speech(slow.getvalue(), MelConfig())


@pytest.mark.parametrize("frames", [96, 97, 99, 100, 101, 103, 104])
def test_audio_that_differs_by_up_to_one_token_is_trimmed_or_padded(frames: int) -> None:
    clip = decode_clip(raw_sample(synthetic_voice(frames / 100), 25), MelConfig(), 50, 4)
    assert len(clip.wave) == 25 * 640 and np.abs(clip.wave).max() == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (raw_sample(synthetic_voice(0.9599), 25), "token count"),
        (raw_sample(synthetic_voice(1.0401), 25), "token count"),
        (raw_sample(synthetic_voice(1.0), 0), "token count"),
        (raw_sample(np.zeros(16000), 25), "silent"),
        (raw_sample(np.full(16000, 0.2), 25), "silent"),
        (raw_sample(np.full(8000, -0.9), 25, rate=8000), "silent"),
        (raw_sample(np.full(16000, 0.002) + 1e-4 * np.random.default_rng(0).standard_normal(16000), 25), "silent"),
        (raw_sample(np.full(16000, np.inf), 25), "not finite"),
        ({"__key__": "a", "tokens.npy": raw_sample(synthetic_voice(1.0), 25)["tokens.npy"]}, "incomplete"),
        ({"__key__": "a", "wav": raw_sample(synthetic_voice(1.0), 25)["wav"]}, "incomplete"),
        (raw_sample(synthetic_voice(1.0), 25) | {"wav": b"RIFF"}, "undecodable"),
        (raw_sample(synthetic_voice(1.0), 25) | {"tokens.npy": b"\x93NUMPY"}, "undecodable"),
    ],
)
def test_a_broken_sample_has_its_cause(raw: dict, cause: str) -> None:
    with pytest.raises(BadSample) as error:
        decode_clip(raw, MelConfig(), 50, 4)
    assert error.value.cause == cause


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    raw = raw_sample(synthetic_voice(1.0), 25)
    array = io.BytesIO()
    np.save(array, np.full(25, 50))
    with pytest.raises(BadSample, match="tokens 50 to 50: expected 0 to 49"):
        decode_clip(raw | {"tokens.npy": array.getvalue()}, MelConfig(), 50, 4)


def test_reference_crops_of_clips_of_any_length_have_one_length() -> None:
    for seconds in (0.3, 2.0, 5.0):
        crop = reference_crop(raw_sample(synthetic_voice(seconds), 1), MelConfig(), 32000, 0.5)
        assert crop.shape == (32000,) and np.abs(crop).max() > 0.01
