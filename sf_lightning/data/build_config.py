"""How a clip of a corpus becomes a sample of a shard: filtered, decoded, tokenized, checked, a few at once."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sf_lightning.audio.mel import MelConfig
from sf_lightning.audio.wave import Wave
from sf_lightning.data.corpus import CorpusClip, Filters
from sf_lightning.data.sample import BadSample, fit_to_tokens, read_speech, read_tokens, read_x_vector
from sf_lightning.data.shards import FORMAT
from sf_lightning.data.writer import Sample, npy_bytes
from sf_lightning.tokens.base import Tokenizer, TokenizerSpec


class SpeakerEncoder(Protocol):
    """What makes x-vectors.

    Attributes:
        name: As the model's `speaker.x_vectors` says it.
        width: Of an x-vector.
    """

    name: str
    width: int

    def encode(self, waves: Sequence[Wave]) -> list[NDArray[np.float32]]:
        """Returns the x-vector [width] of each wave [N] at 16 kHz."""
        ...


@dataclass(frozen=True)
class SpeakerSpec:
    """X-vectors made elsewhere; no name says that there are none."""

    name: str = ""
    width: int = 0


@dataclass(frozen=True)
class BuildConfig:
    """How every clip becomes a sample.

    Args:
        tokenizer: Makes the tokens; or the spec of one, if they lie beside the audio as `tokens.npy`.
        mel: The mel of the models to be trained on the set.
        speaker: Makes x-vectors; or the spec of what made those that lie beside the audio as `speaker.npy`.
        filters: Which clips are taken.
        shard_samples: Clips that make a shard; fewer are in it where some are skipped.
        at_once: Clips that go through tokenizer and speaker encoder together.
    """

    tokenizer: Tokenizer | TokenizerSpec
    mel: MelConfig = MelConfig()
    speaker: SpeakerEncoder | SpeakerSpec = SpeakerSpec()
    filters: Filters = Filters()
    shard_samples: int = 100
    at_once: int = 16

    @property
    def spec(self) -> TokenizerSpec:
        """Of the tokenizer."""
        return self.tokenizer if isinstance(self.tokenizer, TokenizerSpec) else self.tokenizer.spec

    def as_dict(self) -> dict[str, Any]:
        """What two builds of one set must have in common."""
        filters = asdict(self.filters) | {
            "languages": sorted({language.lower() for language in self.filters.languages}),
            "blocked_speakers": sorted(self.filters.blocked_speakers),
        }
        speaker = [self.speaker.name, self.speaker.width]
        said = {
            "format": FORMAT,
            "mel": asdict(self.mel),
            "tokenizer": asdict(self.spec),
            "speaker": speaker,
            "filters": filters,
            "shard_samples": self.shard_samples,
        }
        return json.loads(json.dumps(said))


def samples_of(
    run: Sequence[CorpusClip], config: BuildConfig, skipped: Counter[str], said: list[str]
) -> Iterator[Sample]:
    """Yields what can be used of a run of clips, a few at once; counts and names what cannot."""
    taken: set[str] = set()

    def usable(source: CorpusClip) -> Iterator[tuple[CorpusClip, Wave]]:
        try:
            if source.damage:
                raise BadSample("damaged tar", source.damage)
            if reason := config.filters.reason_against(source.fields):
                skipped[f"filtered: {reason}"] += 1
                return
            if source.key in taken:
                raise BadSample("duplicate key", source.key)
            if not source.audio:
                raise BadSample("incomplete", "no audio")
            wave = read_speech(source.audio, config.mel)
            if not config.filters.takes(len(wave) / config.mel.sample_rate):
                skipped["filtered: duration"] += 1
                return
            taken.add(source.key)
            yield source, wave
        except BadSample as error:
            skipped[error.cause] += 1
            said.append(f"{source.file}: {error}")

    pairs = (pair for source in run for pair in usable(source))
    while batch := list(islice(pairs, config.at_once)):
        sources, waves = [source for source, _ in batch], [wave for _, wave in batch]
        codes, x_vectors = _tokens_of(sources, waves, config), _x_vectors_of(sources, waves, config)
        for source, wave, code, x_vector in zip(sources, waves, codes, x_vectors, strict=True):
            try:
                # What training would refuse has no place in a set.
                tokens = read_tokens(code, config.spec.vocabulary)
                fit_to_tokens(wave, tokens, config.mel, config.spec.frames_per_token)
                read_x_vector(x_vector, config.speaker.width)
            except BadSample as error:
                skipped[error.cause] += 1
                said.append(f"{source.file}: {error}")
            else:
                yield Sample(source, tokens, x_vector, len(wave) / config.mel.sample_rate)


def _tokens_of(sources: Sequence[CorpusClip], waves: Sequence[Wave], config: BuildConfig) -> list[bytes]:
    """The bytes of `tokens.npy` of each clip; empty where it was to be made elsewhere and is not there."""
    if isinstance(config.tokenizer, TokenizerSpec):
        return [source.made.get("tokens.npy", b"") for source in sources]
    return [npy_bytes(tokens.astype(np.int32)) for tokens in config.tokenizer.encode(waves)]


def _x_vectors_of(sources: Sequence[CorpusClip], waves: Sequence[Wave], config: BuildConfig) -> list[bytes]:
    """The bytes of `speaker.npy` of each clip; empty where none are wanted, or one is not there."""
    if not config.speaker.name:
        return [b""] * len(sources)
    if isinstance(config.speaker, SpeakerSpec):
        return [source.made.get("speaker.npy", b"") for source in sources]
    return [npy_bytes(x_vector.astype(np.float16)) for x_vector in config.speaker.encode(waves)]
