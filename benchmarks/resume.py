"""Cost of resuming in the middle of an epoch of two million samples.

    python benchmarks/resume.py --audio FOLDER

Opens a set of 2,000 shards of 1,000 clips of ten seconds (mp3 at 24 kHz) and draws the first sample at several
positions of an epoch; then the same with one shard of 10,000 clips of one second. The set has four real shards,
each linked under 500 names; they are dropped from the page cache before each draw.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile

from sf_lightning.audio.mel import MelConfig
from sf_lightning.audio.wave import AUDIO_SUFFIXES, read_wave
from sf_lightning.data.corpus import CorpusClip
from sf_lightning.data.lanes import Lane, LaneConfig, LaneState, SetPosition
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.shards import Manifest, ShardInfo, ShardSet
from sf_lightning.data.writer import Sample, ShardWriter
from sf_lightning.files.atomic import write_atomically
from sf_lightning.tokens.base import TokenizerSpec

SHARDS, SAMPLES, GROUP, COPIES = 2000, 1000, 4, 4
RATE = 24_000
CROP_SAMPLES = 32_000


def encode_clips(audio: Path, seconds: float, count: int) -> list[bytes]:
    """Returns `count` mp3 files of `seconds` each, cut from the recordings in a folder."""
    paths = sorted(path for path in audio.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    length, encoded, wave = int(seconds * RATE), list[bytes](), np.zeros(0, np.float32)
    for path in paths:
        wave = np.concatenate([wave, read_wave(path, RATE)])
        while len(wave) >= length and len(encoded) < count:
            soundfile.write(buffer := BytesIO(), wave[:length], RATE, format="MP3")
            encoded, wave = [*encoded, buffer.getvalue()], wave[length:]
        if len(encoded) == count:
            return encoded
    raise SystemExit(f"--audio: {audio} is too small: expected at least {count * seconds:.0f} s of speech")


def write_shard(folder: Path, name: str, clips: list[bytes], seconds: float, samples: int) -> ShardInfo:
    """Writes a shard of `samples` samples that repeat the clips, ten per speaker."""
    writer, tokens = ShardWriter(folder, name), np.zeros(round(25 * seconds), np.int64)
    for i in range(samples):
        source = CorpusClip(
            f"clip{i:05d}", "mp3", clips[i % len(clips)], {"id": str(i), "speaker": f"voice{i // 10}"}
        )
        writer.add(Sample(source, tokens, b"", seconds))
    return writer.finish({})


def measure_draw(folder: Path, lanes: int, place: SetPosition) -> str:
    """Returns a line about the cost of opening a set and drawing the first sample at a position."""
    for path in folder.glob("real*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read_before, started = bytes_read(), time.perf_counter()
    lane = Lane(
        [ShardSet(folder)], 0, LaneConfig(0, lanes, ClipRequirements(crop_samples=CROP_SAMPLES), group=GROUP)
    )
    opened = time.perf_counter()
    drawn = next(lane.draw_clips(LaneState((place,))))
    draw_seconds, read = time.perf_counter() - opened, bytes_read() - read_before
    assert drawn.state.places == (place,)
    return f"sample {place.sample:,} of epoch {place.epoch}, {lanes} lanes: {opened - started:.2f} s to open, " + (
        f"{draw_seconds:.2f} s to plan and draw, {read / 1e6:.0f} MB read"
    )


def bytes_read() -> int:
    """Returns the bytes that this process has read."""
    return int(Path("/proc/self/io").read_text().split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audio", type=Path, required=True, help="folder with at least 400 s of speech")
    audio = parser.parse_args().audio
    with tempfile.TemporaryDirectory() as name:
        spec = TokenizerSpec("none", 1, 4, "none")
        large, long = Path(name, "large"), Path(name, "long")
        large.mkdir()
        long.mkdir()
        clips = encode_clips(audio, 10.0, 40)
        real = [write_shard(large, f"real{i}", clips, 10.0, SAMPLES) for i in range(COPIES)]
        infos = []
        for i in range(SHARDS):
            infos.append(replace(real[i % COPIES], name=f"shard-{i:06d}.tar"))
            for suffix in (".tar", ".json"):
                (large / f"shard-{i:06d}{suffix}").symlink_to(f"real{i % COPIES}{suffix}")
        write_atomically(large / "manifest.json", Manifest(MelConfig(), spec, tuple(infos), {}).as_json())
        print(
            f"{SHARDS:,} shards of {SAMPLES:,} clips of 10 s, {real[0].bytes / 1e6:.0f} MB each, {GROUP} in a group"
        )
        for lanes, place in (
            (1, SetPosition(3, 10**6)),
            (1, SetPosition(3, 10**6 + 3999)),
            (64, SetPosition(32, 31_000)),
        ):
            print(measure_draw(large, lanes, place))
        info = write_shard(long, "real0", encode_clips(audio, 1.0, 40), 1.0, 10_000)
        write_atomically(long / "manifest.json", Manifest(MelConfig(), spec, (info,), {}).as_json())
        print(f"one shard of 10,000 clips of 1 s, {info.bytes / 1e6:.0f} MB")
        for lanes in (1, 8):
            print(measure_draw(long, lanes, SetPosition(7, 10_000 // lanes - 10)))


if __name__ == "__main__":
    main()
