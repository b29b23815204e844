"""The clips that decoders are evaluated on: of a shard set, or of a folder of audio. Knows nothing of decoders."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sf_lightning.data.corpus import PRECOMPUTED, CorpusClip, FilesPart, find_parts
from sf_lightning.data.held_out import evenly_spaced_clips
from sf_lightning.data.lanes import DrawnClip
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import BadSample, RawSample, decode_clip, read_speech, reference_crop
from sf_lightning.data.shards import ShardSet
from sf_lightning.data.store import Store
from sf_lightning.data.writer import npy_bytes
from sf_lightning.tokens.base import Tokenizer

log = logging.getLogger(__name__)

MAX_LOOKED_AT = 20
"""Files of a folder that are looked at for another clip of the same speaker."""


class Clips(Protocol):
    """Where clips come from."""

    @property
    def version(self) -> str:
        """Changes whenever a clip may have."""
        ...

    def require(self, requirements: ClipRequirements) -> None:
        """Raises ValueError with both values if these are no clips for a checkpoint."""
        ...

    def draw(self, requirements: ClipRequirements, count: int) -> list[DrawnClip]:
        """Returns up to `count` clips, spread evenly, the same ones every time; broken ones are left out."""
        ...


def open_clips(place: str, tokenizer: Tokenizer | None = None) -> Clips:
    """Opens a shard set, or a folder of audio.

    Args:
        place: Of the set, which may lie elsewhere (see `Store`), or the folder.
        tokenizer: For audio without tokens beside it.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if a tokenizer was given for a set, which has its tokens.
    """
    if Store(place).is_remote or Path(place, "manifest.json").is_file():
        if tokenizer is not None:
            raise ValueError(f"--tokenizer is for folders of audio, {place} is a shard set: leave it out")
        return SetClips(ShardSet(place))
    if not Path(place).is_dir():
        raise FileNotFoundError(f"--data: no folder {place}: give a shard set or a folder of audio")
    folder = FolderClips(Path(place), tokenizer)
    folder.say_what_is_not_tokenised()
    return folder


@dataclass(frozen=True)
class SetClips:
    """Clips of a shard set."""

    shards: ShardSet

    @property
    def version(self) -> str:
        """As the set has it."""
        return self.shards.version

    def require(self, requirements: ClipRequirements) -> None:
        """See `Clips.require`; two tokenizers of one name are told apart by their digests."""
        requirements.check_set(self.shards)

    def draw(self, requirements: ClipRequirements, count: int) -> list[DrawnClip]:
        """See `Clips.draw`."""
        return list(evenly_spaced_clips(self.shards, count, requirements))


@dataclass(frozen=True)
class FolderClips:
    """Audio files under a folder, each with `NAME.tokens.npy` beside it, or tokenised here.

    X-vectors, where a checkpoint takes them, lie beside as `NAME.speaker.npy`; a `NAME.json` may say `speaker` and
    `language`. Else the folder of a file names its speaker.
    """

    folder: Path
    tokenizer: Tokenizer | None = None

    @property
    def version(self) -> str:
        """Of names, sizes and times of its audio, and of what lies beside it."""
        beside = (path.with_suffix(f".{suffix}") for path in self._paths() for suffix in ("json", *PRECOMPUTED))
        files = [*self._paths(), *(path for path in beside if path.is_file())]
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        made = self.tokenizer.spec.digest if self.tokenizer else ""
        return hashlib.sha256(repr((made, stats)).encode()).hexdigest()[:16]

    def require(self, requirements: ClipRequirements) -> None:
        """See `Clips.require`; of tokens that lie beside the audio nobody knows what made them."""
        if self.tokenizer is None or all(map(_has_tokens, self._paths())):
            return
        requirements.check_tokenizer(self.tokenizer.spec, "--tokenizer")

    def say_what_is_not_tokenised(self) -> None:
        """Says how many clips the tokenizer, where there is one, is not used for."""
        paths = self._paths()
        if self.tokenizer is not None and (having := sum(map(_has_tokens, paths))):
            log.warning(
                "%d of %d clips have their tokens beside them: --tokenizer is not used for them", having, len(paths)
            )

    def draw(self, requirements: ClipRequirements, count: int) -> list[DrawnClip]:
        """See `Clips.draw`."""
        paths = self._paths()
        self._name_those_without_audio(paths)
        count = min(count, len(paths))
        return list(self._read([paths[i * len(paths) // count] for i in range(count)], paths, requirements))

    def _paths(self) -> tuple[Path, ...]:
        if not any(each.is_file() for each in self.folder.rglob("*")):
            raise FileNotFoundError(f"--data: {self.folder} is empty: give a shard set or a folder of audio")
        try:
            (part,) = find_parts(self.folder, 10**9)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"--data: no audio under {self.folder}: without reference audio nothing can be compared; "
                "sf-decode makes sound of tokens alone"
            ) from None
        if not isinstance(part, FilesPart):
            raise ValueError(f"--data: {self.folder} holds tars: make a shard set of them with sf-shards build")
        return part.paths

    def _name_those_without_audio(self, paths: Sequence[Path]) -> None:
        having = {path.with_suffix("") for path in paths}
        ending = ".tokens.npy"
        lone = [
            each
            for each in sorted(self.folder.rglob(f"*{ending}"))
            if each.with_name(each.name.removesuffix(ending)) not in having
        ]
        if lone:
            log.warning("left %d clips without reference audio out, the first %s", len(lone), lone[0])

    def _read(
        self, chosen: Sequence[Path], paths: Sequence[Path], requirements: ClipRequirements
    ) -> Iterator[DrawnClip]:
        tokens = requirements.tokens
        assert tokens is not None
        for number, path in enumerate(chosen):
            source = self._source(path)
            where = np.random.default_rng([0, number]).random()
            try:
                clip = decode_clip(
                    self._raw(source, requirements),
                    requirements.mel,
                    tokens.vocabulary,
                    tokens.frames_per_token,
                    requirements.x_vector_width,
                )
                other = self._other(source, path, paths)
                crop = reference_crop(self._audio(other), requirements.mel, requirements.crop_samples, where)
            except BadSample as error:
                log.warning("left %s out: %s", path, error)
            else:
                language = str(source.fields.get("language", ""))
                yield DrawnClip(clip, crop, language=language, is_own_reference=other is source)

    def _source(self, path: Path) -> CorpusClip:
        (source,) = FilesPart("", self.folder, (path,)).read()
        return source

    def _audio(self, source: CorpusClip) -> RawSample:
        return {"__key__": source.key, source.suffix: source.audio}

    def _raw(self, source: CorpusClip, requirements: ClipRequirements) -> RawSample:
        """As a sample of a shard would be read."""
        raw = self._audio(source) | source.made
        if "tokens.npy" not in raw:
            if self.tokenizer is None:
                assert requirements.tokens is not None
                name, digest = requirements.tokens.name, requirements.tokens.digest
                raise ValueError(
                    f"--data: {self.folder}: {source.key} has no tokens beside it: give --tokenizer, the file of "
                    f"the checkpoint's {name}" + (f" (digest {digest})" if digest else "")
                )
            (tokens,) = self.tokenizer.encode([read_speech(source.audio, requirements.mel)])
            raw["tokens.npy"] = npy_bytes(tokens)
        return raw

    def _other(self, source: CorpusClip, path: Path, paths: Sequence[Path]) -> CorpusClip:
        """Another clip of the same speaker in the same folder, or the clip itself."""
        beside = [each for each in paths if each.parent == path.parent and each != path]
        others = (self._source(each) for each in beside[:MAX_LOOKED_AT])
        return next((each for each in others if each.fields["speaker"] == source.fields["speaker"]), source)


def spread(count: int) -> list[int]:
    """Returns so many numbers in an order of which every beginning is spread over the whole.

    >>> spread(10)
    [0, 8, 4, 2, 6, 1, 9, 5, 3, 7]
    """
    bits = count.bit_length()
    return sorted(range(count), key=lambda number: f"{number:0{bits}b}"[::-1])


def kept(count: int, keep: int) -> list[int]:
    """Returns which of so many clips are kept as sound and pictures: all of them also where more are kept.

    >>> [kept(10, keep) for keep in (1, 2, 3)]
    [[0], [0, 8], [0, 4, 8]]
    """
    return sorted(spread(count)[:keep])


def _has_tokens(path: Path) -> bool:
    return path.with_suffix(".tokens.npy").is_file()
