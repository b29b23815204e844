"""Builds a shard set from a folder of audio. Audio bytes are kept as they came.

Everything is written into a folder beside the target and renamed at the end: a build that stops half-way
leaves no set that looks whole, and never touches one that is there.
"""

import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import webdataset
from rich.console import Console
from rich.progress import track

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.audio.wave import AUDIO_SUFFIXES, Wave
from sf_lightning.data.sample import BadSample, read_speech, read_x_vector
from sf_lightning.data.shards import Manifest, ShardInfo
from sf_lightning.tokens.base import Tokenizer, Tokens
from sf_lightning.tokens.kmeans import KMeansTokenizer

MAX_FIT_SECONDS = 2 * 3600
"""K-means is fitted on no more speech than this, spread over the corpus."""


@dataclass(frozen=True)
class Source:
    """An audio file on its way into a shard."""

    key: str
    path: Path
    speaker: str


def find_audio(folder: Path) -> list[Source]:
    """Lists the audio files under a folder, in order; the folder that holds a file names its speaker.

    Dots in keys are replaced, for WebDataset cuts a key at its first dot.

    Raises:
        FileNotFoundError: if there is no folder, or no audio in it.
        ValueError: if two files would have one key.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: give a folder of audio files with --audio")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no audio under {folder}: wanted files ending in {', '.join(AUDIO_SUFFIXES)}")
    sources, taken = [], dict[str, Path]()
    for path in paths:
        inside = path.relative_to(folder)
        key = "_".join(inside.with_suffix("").parts).replace(".", "-")
        if key in taken:
            raise ValueError(f"{path} and {taken[key]} would both have the key {key}: rename one of them")
        taken[key] = path
        sources.append(Source(key, path, "_".join(inside.parent.parts) or key))
    return sources


def fit_tokenizer(sources: Sequence[Source], vocabulary: int, mel: MelConfig) -> KMeansTokenizer:
    """Fits k-means tokens on audio files, at most `MAX_FIT_SECONDS` of them."""

    def waves() -> Iterator[Wave]:
        seconds, order = 0.0, np.random.default_rng(0).permutation(len(sources))
        for i in track(order, "reading speech for the tokenizer", transient=True):
            if seconds >= MAX_FIT_SECONDS:
                return
            try:
                wave = read_speech(sources[i].path.read_bytes(), mel)
            except BadSample:
                continue  # counted and named when the shards are written
            seconds += len(wave) / mel.sample_rate
            yield wave

    speech = list(waves())
    with Console().status(f"fitting {vocabulary} codes"):
        return KMeansTokenizer.fit(speech, vocabulary)


class LookUp:
    """Gathers the mean mel of each token: the best decoder that has no network, shown as a baseline."""

    def __init__(self, vocabulary: int, frames_per_token: int, mel: MelConfig) -> None:
        self.mel = MelSpectrogram(mel)
        self.sum = np.zeros((vocabulary, frames_per_token, mel.num_bands))
        self.count = np.zeros(vocabulary)

    def add(self, wave: Wave, tokens: Tokens) -> None:
        """Adds a wave [N] and its tokens [L]."""
        frames_per_token = self.sum.shape[1]
        with torch.inference_mode():
            mel = self.mel(torch.from_numpy(wave)[None])[0].numpy()
        length = min(len(tokens), len(mel) // frames_per_token)
        patches = mel[: length * frames_per_token].reshape(length, frames_per_token, -1)
        np.add.at(self.sum, tokens[:length], patches)
        np.add.at(self.count, tokens[:length], 1)

    def table(self) -> np.ndarray:
        """Returns the means, float32 [vocabulary, frames_per_token, F]; tokens never seen get the mean of all."""
        overall = self.sum.sum(0) / max(1.0, self.count.sum())
        seen = self.count[:, None, None]
        return np.where(seen > 0, self.sum / np.maximum(seen, 1), overall).astype(np.float32)


def build(
    sources: Sequence[Source],
    out: Path,
    tokenizer: Tokenizer,
    mel: MelConfig | None = None,
    shard_samples: int = 100,
    x_vectors: tuple[str, int] = ("", 0),
) -> Manifest:
    """Writes a shard set.

    Args:
        sources: What goes in, in this order.
        out: The folder to make.
        tokenizer: Makes the tokens.
        mel: The mel of the models to be trained on the set.
        shard_samples: Samples of a shard.
        x_vectors: Name and width of embeddings that lie beside the audio as `NAME.speaker.npy`; by default none.

    Returns:
        The manifest.

    Raises:
        FileExistsError: if `out` is there already.
        ValueError: if not one source could be used.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already: delete it or give another --out")
    mel = mel or MelConfig()
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    spec, skipped, infos = tokenizer.spec, Counter[str](), list[ShardInfo]()
    look_up = LookUp(spec.vocabulary, spec.frames_per_token, mel)
    shard: _ShardWriter | None = None
    for source in track(sources, f"writing {out}", transient=True):
        audio = source.path.read_bytes()
        try:
            wave = read_speech(audio, mel)
            tokens = tokenizer.encode([wave])[0]
            x_vector = _beside(source) if x_vectors[0] else b""
            read_x_vector(x_vector, x_vectors[1])
            if len(tokens) == 0:
                raise BadSample("too short", f"{len(wave)} samples make no token")
        except BadSample as error:
            skipped[error.cause] += 1
            print(f"skipped {source.path}: {error}")
            continue
        look_up.add(wave, tokens)
        shard = shard or _ShardWriter(partial, len(infos))
        shard.add(source, audio, tokens, x_vector, len(wave) / mel.sample_rate)
        if len(shard.index) == shard_samples:
            infos.append(shard.close())
            shard = None
    if shard:
        infos.append(shard.close())
    if not infos:
        shutil.rmtree(partial)
        raise ValueError(f"none of {len(sources)} files could be used ({_counts(skipped)}): nothing was written")
    np.save(partial / "lookup.npy", look_up.table())
    manifest = Manifest(mel, spec, tuple(infos), dict(skipped), *x_vectors)
    manifest.save(partial)
    partial.rename(out)
    return manifest


def _beside(source: Source) -> bytes:
    """The bytes of the x-vector beside an audio file; empty if there is none."""
    path = source.path.with_suffix(".speaker.npy")
    return path.read_bytes() if path.is_file() else b""


def _counts(skipped: Counter[str]) -> str:
    return ", ".join(f"{cause}: {count}" for cause, count in skipped.items())


class _ShardWriter:
    """One tar and its index; the same samples give the same bytes."""

    def __init__(self, folder: Path, number: int) -> None:
        self.path = folder / f"shard-{number:06d}.tar"
        self.file = self.path.open("wb")
        self.tar = webdataset.TarWriter(self.file, mtime=0, user="", group="")
        self.index: list[tuple[str, int, int]] = []
        self.seconds = 0.0

    def add(self, source: Source, audio: bytes, tokens: Tokens, x_vector: bytes, seconds: float) -> None:
        """Adds a sample."""
        offset = self.tar.tarstream.offset
        fields = {"id": source.key, "speaker": source.speaker, "duration": round(seconds, 3)}
        buffer = io.BytesIO()
        np.save(buffer, tokens.astype(np.int32))
        files = {
            source.path.suffix[1:].lower(): audio,
            "tokens.npy": buffer.getvalue(),
            "json": json.dumps(fields, ensure_ascii=False).encode(),
        }
        if x_vector:
            files["speaker.npy"] = x_vector
        self.tar.write({"__key__": source.key, **files})
        self.index.append((source.key, offset, len(tokens)))
        self.seconds += seconds

    def close(self) -> ShardInfo:
        """Ends the shard and returns its row of the manifest."""
        self.tar.close()
        self.file.close()
        self.path.with_suffix(".json").write_text(json.dumps(self.index) + "\n")
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ShardInfo(
            name=self.path.name,
            samples=len(self.index),
            tokens=sum(row[2] for row in self.index),
            seconds=round(self.seconds, 3),
            bytes=self.path.stat().st_size,
            digest=digest,
        )
