"""Corpora: fields, filters, precomputed tokens, damage, unusual names."""

import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sf_lightning.cli.shards import main
from sf_lightning.data.build import build
from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import TarPart, clean_key, find_parts
from sf_lightning.data.filters import Filters
from sf_lightning.data.index import checksum
from sf_lightning.data.shards import ShardSet
from sf_lightning.tokens.base import TokenizerSpec
from tests.toys.audio import synthetic_voice, write_corpus
from tests.toys.corpora import emilia, mp3, mutate, write_tar


def test_emilia_and_yodas_tars_become_shards_with_their_fields_and_bytes(
    config: BuildConfig, tmp_path: Path
) -> None:
    build(find_parts(emilia(tmp_path / "emilia"), 3), tmp_path / "set", config)
    made = ShardSet(tmp_path / "set")
    names = [info.name for info in made.manifest.shards]
    assert names == [f"{tar}{run}.tar" for tar in ("EN-B000000", "ZH-B000001") for run in ("", "-0001", "-0002")]
    rows = [row for number in range(6) for row in made.read_index(number)]
    assert len(rows) == 14 and {row.language for row in rows} == {"en", "zh"}
    assert rows[0].speaker == "EN_B00000_S00000" and rows[-1].speaker == "ZH_a_b-3"
    (first, *_) = made.read_samples(0)
    assert first["mp3"] == mp3(0.8, 0)
    fields = json.loads(first["json"])
    assert fields["text"] == "sentence 0" and fields["dnsmos"] == 3.0 and fields["id"] == first["__key__"]
    assert checksum(first) == rows[0].checksum


@pytest.mark.parametrize(
    ("filters", "left", "causes"),
    [
        (Filters(languages=("ZH",)), 7, {"filtered: language": 7}),
        (Filters(min_seconds=1.05, max_seconds=1.25), 4, {"filtered: duration": 10}),
        (Filters(min_dnsmos=3.2), 6, {"filtered: dnsmos": 8}),
        (Filters(blocked_speakers=frozenset(["EN_B00000_S00001"])), 11, {"filtered: blocked speaker": 3}),
    ],
)
def test_filtered_clips_are_skipped_and_counted(
    config: BuildConfig, tmp_path: Path, filters: Filters, left: int, causes: dict
) -> None:
    parts = find_parts(emilia(tmp_path / "emilia"), 3)
    manifest = build(parts, tmp_path / "set", BuildConfig(config.tokenizer, filters=filters))
    assert manifest is not None and manifest.skipped == causes
    assert sum(info.samples for info in manifest.shards) == left


@pytest.mark.parametrize(
    ("languages", "samples"), [("zh", 7), ("[zh]", 7), ("en,zh", 14), ("[en, zh]", 14), ("", 14)]
)
def test_languages_may_be_a_list_or_a_comma_separated_text(
    shards: ShardSet, tmp_path: Path, languages: str, samples: int
) -> None:
    tokens = shards.folder.parent / "kmeans-50.npz"
    args = ["build", f"--audio={emilia(tmp_path / 'emilia')}", f"--out={tmp_path}/set", f"--tokenizer={tokens}"]
    main([*args, f"--languages={languages}"])
    assert ShardSet(tmp_path / "set").samples == samples


def test_precomputed_tokens_are_checked_and_kept(tmp_path: Path) -> None:
    for i, length in enumerate((25, 25, 27, None)):
        soundfile.write(tmp_path / f"clip{i}.wav", synthetic_voice(1.0, seed=i), 16000)
        if length:
            np.save(tmp_path / f"clip{i}.tokens.npy", np.full(length, 60 if i == 1 else 7))
    spec = TokenizerSpec("s3", 50, 4, "s3")
    manifest = build(find_parts(tmp_path, 9), tmp_path.with_name("made"), BuildConfig(spec))
    assert manifest is not None and manifest.tokenizer == spec
    assert manifest.skipped == {"token count": 2, "incomplete": 1}
    (raw,) = ShardSet(tmp_path.with_name("made")).read_samples(0)
    assert np.load(io.BytesIO(raw["tokens.npy"])).tolist() == [7] * 25


class FakeECAPA:
    """Encodes each wave as its length."""

    name, width = "fake", 2

    def encode(self, waves: list) -> list:
        """Returns the lengths [N, 1]."""
        assert len(waves) <= 2
        return [np.array([len(wave) / 16000, 1], np.float32) for wave in waves]


def test_x_vectors_are_computed_in_batches_and_stored_with_the_right_clip(
    config: BuildConfig, tmp_path: Path
) -> None:
    parts = find_parts(emilia(tmp_path / "emilia"), 3)
    made = BuildConfig(config.tokenizer, speaker=FakeECAPA(), shard_samples=5, batch_size=2)
    build(parts, tmp_path / "set", made)
    held = ShardSet(tmp_path / "set")
    assert (held.manifest.x_vectors, held.manifest.x_vector_width) == ("fake", 2)
    for raw in held.read_samples(0):
        x_vector = np.load(io.BytesIO(raw["speaker.npy"]))
        assert x_vector.dtype == np.float16
        assert x_vector[0] == pytest.approx(json.loads(raw["json"])["duration"], abs=2e-3)


def test_keys_cannot_point_outside_the_folder_or_be_hidden_files(config: BuildConfig, tmp_path: Path) -> None:
    assert clean_key("../../etc/passwd.d") == "--_--_etc_passwd-d"
    assert clean_key("__meta__") == "_meta__" and clean_key("./a b") == "a_b"
    write_tar(tmp_path / "in" / "a.tar", [("../../evil/clip.mp3", mp3(1.0)), ("../../evil/clip.json", b"{}")])
    build(find_parts(tmp_path / "in", 3), tmp_path / "set", config)
    assert [row.key for row in ShardSet(tmp_path / "set").read_index(0)] == ["--_--_evil_clip"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "set"]


def test_a_damaged_tar_yields_the_clips_before_the_damage_and_duplicates_are_counted(
    config: BuildConfig, tmp_path: Path
) -> None:
    twin = [("a.mp3", mp3(1.0)), ("b.mp3", mp3(1.0, 1)), ("a.mp3", mp3(1.0))]
    tar = write_tar(tmp_path / "in" / "a.tar", twin)
    manifest = build(find_parts(tmp_path / "in", 9), tmp_path / "set", config)
    assert manifest is not None and manifest.skipped == {"duplicate key": 1}
    with tarfile.open(tar) as members:
        cut = members.getmembers()[2].offset_data + 1000
    tar.write_bytes(tar.read_bytes()[:cut])
    assert [source.key for source in TarPart("a", tar).read()] == ["a", "b", "a.tar"]


@pytest.mark.parametrize("where", ["before a header", "within a header", "in a header", "in a file"])
def test_a_tar_that_ends_early_is_counted_wherever_it_is_cut_or_broken(
    config: BuildConfig, tmp_path: Path, where: str, capsys: pytest.CaptureFixture
) -> None:
    tar = write_tar(tmp_path / "in" / "a.tar", [(f"{i}.mp3", mp3(1.0, i)) for i in range(4)])
    build(find_parts(tmp_path / "in", 9), tmp_path / "whole", config)
    data = tar.read_bytes()
    with tarfile.open(tar) as members:
        info = members.getmembers()[2]
    at = info.offset
    cut = {"before a header": at, "within a header": at + 100, "in a file": info.offset_data + 1000}
    tar.write_bytes(data[: cut[where]] if where in cut else data[:at] + b"?" + data[at + 1 :])
    manifest = build(find_parts(tmp_path / "in", 9), tmp_path / "set", config)
    assert manifest is not None and manifest.skipped == {"damaged tar": 1}
    assert [row.key for row in ShardSet(tmp_path / "set").read_index(0)] == ["0", "1"]
    assert re.search(r"skipped for a: a\.tar: damaged tar: ends early: .+", capsys.readouterr().out)


@pytest.mark.parametrize("count", [150, pytest.param(2_000, marks=pytest.mark.slow)])
def test_reading_a_randomly_damaged_tar_of_a_corpus_terminates(tmp_path: Path, count: int) -> None:
    members = [(f"{i}.{kind}", bytes(700 * i) or b"x") for i in range(6) for kind in ("mp3", "json")]
    tar = write_tar(tmp_path / "a.tar", members)
    data = tar.read_bytes()
    for seed in range(count):
        tar.write_bytes(mutate(data, np.random.default_rng(seed)))
        sources = list(TarPart("a", tar).read())
        assert all(not source.problem or source.cause != "damaged tar" for source in sources[:-1])
        assert sum(len(source.audio) for source in sources) <= 2 * len(data)


def test_tars_whose_shards_would_have_the_same_name_are_refused(tmp_path: Path) -> None:
    for pair, message in (
        (("data", "data-0001"), "data-0001.tar and .*data.tar would both have shards named data-0001"),
        (("a.b", "a-b"), "would both get the key a-b"),
        (("x", "manifest"), "would have an index manifest.json"),
    ):
        folder = tmp_path / pair[0]
        for name in pair:
            write_tar(folder / f"{name}.tar", [])
        with pytest.raises(ValueError, match=message):
            find_parts(folder, 3)


def test_invalid_unicode_and_missing_speaker_names_are_accepted(config: BuildConfig, tmp_path: Path) -> None:
    audio = write_corpus(tmp_path / "audio", clips=2, speakers=2)
    (audio / "voice0" / "clip000.json").write_text('{"text": "\\ud800 half", "speaker": null, "language": null}')
    os.rename(audio / "voice1" / "clip001.wav", os.fsencode(audio / "voice1") + b"/caf\xe9.wav")
    build(find_parts(audio, 9), tmp_path / "set", config)
    held = ShardSet(tmp_path / "set")
    assert [(row.key, row.speaker, row.language) for row in held.read_index(0)] == [
        ("voice0_clip000", "voice0", ""),
        ("voice1_caf_", "voice1", ""),
    ]
    assert json.loads(next(held.read_samples(0))["json"])["text"] == "\ud800 half"


def test_mixed_folders_and_duplicate_keys_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x" / "a.b.tar", [])
    write_tar(tmp_path / "x" / "a-b.tar", [])
    with pytest.raises(ValueError, match="would both get the key x_a-b: rename one"):
        find_parts(tmp_path, 3)
    soundfile.write(tmp_path / "a.wav", synthetic_voice(0.5), 16000)
    with pytest.raises(ValueError, match=r"has tars .* and audio files .*: give a folder of one kind"):
        find_parts(tmp_path, 3)
