"""Audio files of other programs: read whole, as an independent decoder reads them, or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest

from sf_lightning.audio.mel import MelConfig
from sf_lightning.audio.wave import TooLongError, decode_audio, read_wave
from sf_lightning.data.build import build
from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import find_parts
from sf_lightning.data.filters import Filters
from sf_lightning.data.sample import BadSample, read_speech
from sf_lightning.data.shards import ShardSet
from sf_lightning.data.verify import verify
from sf_lightning.tokens.base import TokenizerSpec
from tests.toys.audio_files import (
    ID3,
    ID3V1,
    encoded,
    seconds_by_ffmpeg,
    with_data_size,
    without_length,
    without_xing,
)

WAV, FLAC = encoded(2), encoded(2, "FLAC")
VORBIS, OPUS = encoded(2, "OGG", "VORBIS"), encoded(2, "OGG", "OPUS")
MP3 = encoded(2, "MP3", bitrate_mode="VARIABLE", compression_level=0.3)
MP3_44K = encoded(1, "MP3", rate=44100, channels=2)

ODD: dict[str, list[bytes]] = {
    "plain.wav": [WAV],
    "plain.flac": [FLAC],
    "plain.mp3": [MP3],
    "bare.mp3": [without_xing(MP3)],
    "joined.mp3": [MP3, MP3],
    "joined-kinds.mp3": [MP3, MP3_44K],
    "joined-bare.mp3": [MP3, without_xing(MP3)],
    "joined-tagged.mp3": [ID3 + MP3 + ID3V1, ID3 + MP3 + ID3V1],
    "joined-vorbis.ogg": [VORBIS, encoded(1, "OGG", "VORBIS", 24000)],
    "joined-opus.opus": [OPUS, OPUS, OPUS],
    "joined-mixed.ogg": [VORBIS, OPUS],
    "joined.flac": [FLAC, encoded(1, "FLAC", rate=8000, channels=2)],
    "joined-tagged.flac": [FLAC, ID3 + FLAC],
    "piped.flac": [without_length(FLAC)],
    "joined.wav": [WAV, encoded(1, rate=48000, channels=2)],
    "piped.wav": [with_data_size(WAV, 0xFFFFFFFF)],
    "piped-joined.wav": [with_data_size(WAV, 0x7FFFFFFF), with_data_size(WAV, 0)],
    "long.wav": [encoded(2, "RF64")],
    "w64.wav": [encoded(2, "W64")],
    "24-bit.wav": [encoded(2, "WAVEX", "PCM_24", channels=2)],
    "float.wav": [encoded(2, subtype="FLOAT")],
    "gsm.wav": [encoded(2, subtype="GSM610", rate=8000)],
    "ulaw.wav": [encoded(2, subtype="ULAW", rate=8000)],
    "adpcm.wav": [encoded(2, subtype="MS_ADPCM", rate=8000)],
    "tagged.wav": [WAV + ID3V1],
    "garbage.mp3": [MP3 + b"garbage" * 100],
    "garbage.flac": [FLAC + b"garbage" * 100],
}
"""Files by name, each as the files that were joined."""


def test_a_set_of_odd_files_agrees_with_ffmpeg_within_a_frame(tmp_path: Path) -> None:
    expected = {}
    for name, parts in ODD.items():
        path = tmp_path / "audio" / name.replace(".", "_") / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"".join(parts))
        expected[path.parent.name] = seconds = sum(map(seconds_by_ffmpeg, parts))
        np.save(path.with_suffix(".tokens.npy"), np.zeros(int(seconds * 25), np.int32))
    manifest = build(
        find_parts(tmp_path / "audio", 99), tmp_path / "set", BuildConfig(TokenizerSpec("any", 50, 4, "any"))
    )
    assert manifest is not None and manifest.skipped == {}
    shards = ShardSet(tmp_path / "set")
    fields = [json.loads(raw["json"]) for raw in shards.read_samples(0)]
    found = {field["speaker"]: field["duration"] for field in fields}
    assert found == pytest.approx(expected, abs=0.01)
    assert verify(shards) == []


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32"])
def test_wavs_of_telephones_are_read(subtype: str) -> None:
    data = encoded(3, subtype=subtype, rate=8000)
    wave = read_wave(data, 8000)
    assert len(wave) == pytest.approx(24000, abs=320) and np.abs(wave).max() > 0.1  # whole blocks
    with pytest.raises(ValueError, match="bytes of audio are there"):
        read_wave(data[: len(data) // 2], 8000)


def test_a_joined_file_is_the_sequence_of_its_parts() -> None:
    for parts in ODD.values():
        whole = read_wave(b"".join(parts), 16000)
        assert np.array_equal(whole, np.concatenate([read_wave(part, 16000) for part in parts]))


@pytest.mark.parametrize(
    "data",
    [WAV, MP3, without_xing(MP3), FLAC, without_length(FLAC), VORBIS, OPUS, MP3 + MP3, VORBIS + VORBIS, FLAC + FLAC]
    + [encoded(2, kind) for kind in ("RF64", "W64", "AIFF", "NIST")],
)
def test_a_truncated_file_is_undecodable(data: bytes) -> None:
    for share in (0.3, 0.7, 0.95):
        with pytest.raises(BadSample, match="undecodable"):
            read_speech(data[: int(share * len(data)) // 2 * 2 + 1], MelConfig())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        with_data_size(WAV, 1000),
        with_data_size(WAV, 200_000),
        WAV + b"garbage" * 100,
        MP3[:2000] + b"garbage" * 10 + MP3[2000:],
        FLAC[:22] + (16000).to_bytes(4, "big") + FLAC[26:],  # fewer samples than there are
        VORBIS[:3000] + VORBIS[3100:],
    ],
)
def test_a_file_that_contradicts_its_header_is_undecodable(data: bytes) -> None:
    with pytest.raises(BadSample, match="undecodable"):
        read_speech(data, MelConfig())


def test_audio_longer_than_the_caller_accepts_is_not_decoded(tmp_path: Path) -> None:
    silence = bytes(FLAC[:21]) + bytes([FLAC[21] & 0xF0 | 0x0F]) + b"\xff" * 4 + FLAC[26:]  # 50 days, in the header
    with pytest.raises(TooLongError):
        decode_audio(silence, max_seconds=20)
    with pytest.raises(ValueError, match="expected at most 134217728"):
        decode_audio(silence)
    for name, data in {"a.wav": WAV, "b.flac": silence, "c.flac": FLAC + FLAC}.items():
        (tmp_path / name).write_bytes(data)
        np.save(tmp_path / f"{name[0]}.tokens.npy", np.zeros(50, np.int32))
    config = BuildConfig(TokenizerSpec("any", 50, 4, "any"), filters=Filters(max_seconds=3))
    manifest = build(find_parts(tmp_path, 9), tmp_path.with_name("set"), config)
    assert manifest is not None and manifest.skipped == {"filtered: duration": 2}
