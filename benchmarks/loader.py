"""Measures how fast one core makes packs from shards, compared with plain WebDataset and loose files.

    python benchmarks/loader.py --audio shards/demo/corpus/train [--json]

The audio is converted to mp3 and flac at 16 kHz, and built into shards. The readers are measured in turn, several
times, and the fastest run of each counts. One process with one thread, like a loader worker; CPU time.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
import webdataset
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from sf_lightning.audio.mel import MelConfig
from sf_lightning.audio.wave import AUDIO_SUFFIXES, read_wave
from sf_lightning.data.build import build
from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import find_parts
from sf_lightning.data.lanes import Lane, LaneConfig, LaneState
from sf_lightning.data.packing import PackShape, pack_clips
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import read_tokens
from sf_lightning.data.shards import ShardSet
from sf_lightning.tokens.base import TokenizerSpec

RATE, CROP_SECONDS = 16000, 3.0
SPEC = TokenizerSpec("any", 50, 4, "any")
SHAPE = PackShape(200, 24, 4, 16, MelConfig())
"""Packs of 48 s, as in experiments/streamflow_sr.yaml."""


def write_audio(source: Path, folder: Path, kind: str, rate: int, seconds: float) -> None:
    """Converts so many seconds of speech to another format and rate, with the right number of tokens beside it."""
    written = 0.0
    paths = sorted(path for path in source.rglob("*") if path.suffix in AUDIO_SUFFIXES)
    for path in track(paths, f"writing {kind}", transient=True):
        wave = read_wave(path, RATE)
        out = folder / path.parent.name / f"{path.stem}.{kind}"
        out.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(out, wave if rate == RATE else soxr.resample(wave, RATE, rate), rate, format=kind.upper())
        np.save(out.with_suffix(".tokens.npy"), np.zeros(len(wave) // 640, np.int32))
        written += len(wave) / RATE
        if written > seconds:
            return


def plain(shards: ShardSet, kind: str) -> Iterator[float]:
    """Yields the seconds of each clip that plain WebDataset reads and soundfile decodes."""
    urls = [str(Path(shards.folder, info.name)) for info in shards.manifest.shards]
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        wave, rate = soundfile.read(io.BytesIO(sample[kind]), dtype="float32")
        yield len(wave) / rate


class Files(Dataset):
    """Audio files, decoded one by one."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.paths = sorted(folder.rglob(f"*.{kind}"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> float:
        wave, rate = soundfile.read(self.paths[index], dtype="float32")
        return len(wave) / rate


def loose(folder: Path, kind: str) -> Iterator[float]:
    """Yields the seconds of each file of a shuffled map-style dataset."""
    yield from map(float, DataLoader(Files(folder, kind), batch_size=None, shuffle=True))


def ours(shards: ShardSet, _: str) -> Iterator[float]:
    """Yields the seconds of each pack of an epoch, with a reference crop for every piece."""
    lane = Lane([shards], 0, LaneConfig(0, 1, ClipRequirements(crop_samples=round(CROP_SECONDS * RATE))))
    for pack in pack_clips(islice(lane.draw_clips(LaneState()), shards.samples), SHAPE):
        yield int(pack.blocks.valid.sum()) / 100


def tokens_only(shards: ShardSet, _: str) -> Iterator[float]:
    """Yields the seconds of each clip whose tokens are read without its audio."""
    for number in range(len(shards.manifest.shards)):
        for raw in shards.read_samples(number):
            yield len(read_tokens(raw["tokens.npy"], SPEC.vocabulary)) / 25


def measure_rates(readers: dict[str, Callable[[], Iterator[float]]], repeats: int) -> dict[str, float]:
    """Returns the seconds of audio per second of each reader, from the fastest of several runs."""
    best = dict.fromkeys(readers, 0.0)
    for _ in range(repeats):
        for name, reader in readers.items():
            start = time.process_time()
            seconds = sum(reader())
            best[name] = max(best[name], seconds / (time.process_time() - start))
    return best


def packing_lost(shards: ShardSet) -> float:
    """Returns the share of padding among the frames of an epoch's packs."""
    valid = total = 0
    lane = Lane([shards], 0, LaneConfig(0, 1, ClipRequirements(crop_samples=RATE)))
    for pack in pack_clips(lane.draw_clips(LaneState()), SHAPE):
        if pack.states[0].places[0].epoch:
            break
        valid, total = valid + int(pack.blocks.valid.sum()), total + pack.blocks.valid.numel()
    return 1 - valid / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audio", type=Path, required=True, help="folder of speech")
    parser.add_argument("--seconds", type=float, default=1200, help="seconds of speech to convert")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console, results = Console(width=118), {}
    console.print(f"one of {os.cpu_count()} CPU cores, torch {torch.__version__}")
    table = Table("audio", "reader", "seconds of audio per second", title="one core")
    with tempfile.TemporaryDirectory() as folder:
        # Emilia's mp3 is at 24 kHz and is resampled.
        write_audio(args.audio, Path(folder) / "mp3_24k", "mp3", 24000, args.seconds)
        resampled = ShardSet(Path(folder) / "set-mp3_24k")
        build(find_parts(Path(folder) / "mp3_24k", 100), Path(resampled.folder), BuildConfig(SPEC))
        results |= measure_rates({"rate_mp3_24k": partial(ours, resampled, "")}, args.repeats)
        table.add_row("mp3, 24 kHz", "packs", f"{results['rate_mp3_24k']:.0f}")
        for kind in ("mp3", "flac"):
            files = Path(folder) / kind
            write_audio(args.audio, files, kind, RATE, args.seconds)
            build(find_parts(files, 100), Path(folder) / f"set-{kind}", BuildConfig(SPEC))
            shards = ShardSet(Path(folder) / f"set-{kind}")
            if kind == "flac":
                seconds = sum(info.seconds for info in shards.manifest.shards)
                audio = sum(path.stat().st_size for path in files.rglob("*.flac"))
                results["flac_bytes_per_second"] = audio / seconds
            readers = {
                f"rate_{kind}": partial(ours, shards, kind),
                f"plain_{kind}": partial(plain, shards, kind),
                f"files_{kind}": partial(loose, files, kind),
            }
            found = measure_rates(readers, args.repeats)
            for (name, rate), reader in zip(
                found.items(), ("packs", "plain WebDataset", "loose files"), strict=True
            ):
                results[name] = rate
                table.add_row(kind, reader, f"{rate:.0f}")
            results[f"cost_{kind}"] = found[f"plain_{kind}"] / found[f"rate_{kind}"] - 1
        results |= measure_rates({"rate_tokens": partial(tokens_only, shards, "")}, args.repeats)
        table.add_row("tokens only", "tokens", f"{results['rate_tokens']:.0f}")
        results["packing_lost"] = packing_lost(shards)
    console.print(table)
    console.print(
        f"packs cost {results['cost_mp3']:.1%} over plain WebDataset with mp3, {results['cost_flac']:.1%} with "
        f"flac; {results['packing_lost']:.2%} of the frames of packs of 48 s are padding"
    )
    if args.json:
        print(json.dumps({name: round(value, 4) for name, value in results.items()}))


if __name__ == "__main__":
    main()
