"""How a clip of a corpus becomes a sample of a shard: filtered, decoded, tokenized, checked, in batches."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sf_lightning.audio.mel import MelConfig
from sf_lightning.audio.wave import Wave
from sf_lightning.data.corpus import CorpusClip
from sf_lightning.data.filters import Filters
from sf_lightning.data.sample import BadSample, fit_to_tokens, read_speech, read_tokens, read_x_vector
from sf_lightning.data.writer import Sample, npy_bytes
from sf_lightning.files.formats import SHARDS_FORMAT
from sf_lightning.tokens.base import Tokenizer, TokenizerSpec


class SpeakerEncoder(Protocol):
    """Computes x-vectors.

    Attributes:
        name: Name of the encoder, as in the model's `speaker.x_vectors`.
        width: Width X of an x-vector.
    """

    name: str
    width: int

    def encode(self, waves: Sequence[Wave]) -> list[NDArray[np.float32]]:
        """Returns the x-vector [X] of each wave [N] at 16 kHz."""
        ...


@dataclass(frozen=True)
class SpeakerSpec:
    """Name and width of precomputed x-vectors; an empty name if there are none."""

    name: str = ""
    width: int = 0


@dataclass(frozen=True)
class BuildConfig:
    """How every clip becomes a sample.

    Args:
        tokenizer: The tokenizer; or the spec of one whose tokens are stored beside the audio as `tokens.npy`.
        mel: Mel settings of the models to be trained on the set.
        speaker: The speaker encoder; or the spec of x-vectors that are stored beside the audio as `speaker.npy`.
        filters: Which clips are accepted.
        shard_samples: Clips per shard, counted before any is skipped.
        batch_size: Clips that tokenizer and speaker encoder process together.
    """

    tokenizer: Tokenizer | TokenizerSpec
    mel: MelConfig = MelConfig()
    speaker: SpeakerEncoder | SpeakerSpec = SpeakerSpec()
    filters: Filters = Filters()
    shard_samples: int = 100
    batch_size: int = 16

    @property
    def spec(self) -> TokenizerSpec:
        """Spec of the tokenizer."""
        return self.tokenizer if isinstance(self.tokenizer, TokenizerSpec) else self.tokenizer.spec

    def as_dict(self) -> dict[str, Any]:
        """Returns everything that the bytes of the set depend on, beside the corpus, as plain values."""
        values = {
            "format": SHARDS_FORMAT,
            "mel": asdict(self.mel),
            "tokenizer": asdict(self.spec),
            "speaker": [self.speaker.name, self.speaker.width],
            "filters": asdict(self.filters)
            | {
                "languages": sorted({language.lower() for language in self.filters.languages}),
                "blocked_speakers": sorted(self.filters.blocked_speakers),
            },
            "shard_samples": self.shard_samples,
        }
        return json.loads(json.dumps(values))


@dataclass
class SkippedClips:
    """The clips of a shard that were skipped.

    Attributes:
        counts: Number of clips by cause.
        lines: A line about each broken clip; filtered ones are only counted.
    """

    counts: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list)

    def add(self, clip: CorpusClip, error: BadSample) -> None:
        """Counts a rejected clip under its cause, and keeps a line about it for the index of the shard."""
        self.counts[error.cause] += 1
        self.lines.append(f"{clip.file_name}: {error}")


def make_samples(clips: Sequence[CorpusClip], config: BuildConfig, skipped: SkippedClips) -> Iterator[Sample]:
    """Yields the samples of the clips of one shard; adds those that cannot be used to `skipped`."""
    usable = _usable_clips(clips, config, skipped)
    while batch := list(islice(usable, config.batch_size)):
        batch_clips, waves = [clip for clip, _ in batch], [wave for _, wave in batch]
        tokens_files, x_vectors = _tokenize(batch_clips, waves, config), _embed(batch_clips, waves, config)
        for clip, wave, tokens_file, x_vector in zip(batch_clips, waves, tokens_files, x_vectors, strict=True):
            try:
                # The checks of training: a set has no sample that training would skip.
                tokens = read_tokens(tokens_file, config.spec.vocabulary)
                fit_to_tokens(wave, tokens, config.mel, config.spec.frames_per_token)
                read_x_vector(x_vector, config.speaker.width)
            except BadSample as error:
                skipped.add(clip, error)
            else:
                yield Sample(clip, tokens, x_vector, len(wave) / config.mel.sample_rate)


def _usable_clips(
    clips: Sequence[CorpusClip], config: BuildConfig, skipped: SkippedClips
) -> Iterator[tuple[CorpusClip, Wave]]:
    """Yields the clips that can be decoded and pass the filters, with their waves."""
    keys: set[str] = set()
    for clip in clips:
        try:
            if clip.problem:
                raise BadSample(clip.cause, clip.problem)
            if reason := config.filters.rejection_reason(clip.fields):
                skipped.counts[f"filtered: {reason}"] += 1
                continue
            if clip.key in keys:
                raise BadSample("duplicate key", clip.key)
            if not clip.audio:
                raise BadSample("incomplete", "no audio")
            wave = read_speech(clip.audio, config.mel, config.filters.max_seconds)
        except BadSample as error:
            if error.cause == "too long":
                skipped.counts["filtered: duration"] += 1
            else:
                skipped.add(clip, error)
            continue
        if not config.filters.accepts_duration(len(wave) / config.mel.sample_rate):
            skipped.counts["filtered: duration"] += 1
            continue
        keys.add(clip.key)
        yield clip, wave


def _tokenize(clips: Sequence[CorpusClip], waves: Sequence[Wave], config: BuildConfig) -> list[bytes]:
    """Returns the content of `tokens.npy` of each clip; empty where a precomputed one is missing."""
    if isinstance(config.tokenizer, TokenizerSpec):
        return [clip.precomputed.get("tokens.npy", b"") for clip in clips]
    return [npy_bytes(tokens.astype(np.int32)) for tokens in config.tokenizer.encode(waves)]


def _embed(clips: Sequence[CorpusClip], waves: Sequence[Wave], config: BuildConfig) -> list[bytes]:
    """Returns the content of `speaker.npy` of each clip; empty without x-vectors, or where one is missing."""
    if not config.speaker.name:
        return [b""] * len(clips)
    if isinstance(config.speaker, SpeakerSpec):
        return [clip.precomputed.get("speaker.npy", b"") for clip in clips]
    return [npy_bytes(x_vector.astype(np.float16)) for x_vector in config.speaker.encode(waves)]
