"""Sources of the clips that decoders are evaluated on: a shard set or a folder of audio."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from sf_lightning.data.corpus import PRECOMPUTED, CorpusClip, FilesPart, make_parts
from sf_lightning.data.held_out import evenly_spaced_clips
from sf_lightning.data.lanes import DrawnClip
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import BadSample, RawSample, decode_clip, read_speech, reference_crop
from sf_lightning.data.scan import Scan, scan
from sf_lightning.data.shards import ShardSet
from sf_lightning.data.store import Store
from sf_lightning.data.writer import npy_bytes
from sf_lightning.files.digest import digest_of
from sf_lightning.files.text import get_logger
from sf_lightning.tokens.base import Tokenizer

log = get_logger(__name__)

MAX_SEARCHED = 20
"""Files of a folder that are searched for another clip of the same speaker."""


@dataclass(frozen=True)
class SetClips:
    """Clips of a shard set."""

    shards: ShardSet

    @property
    def version(self) -> str:
        """Digest of the shard set, which changes whenever a clip may have changed."""
        return self.shards.version

    def check(self, requirements: ClipRequirements) -> None:
        """Raises ValueError, with both values, if the clips do not meet a checkpoint's requirements."""
        requirements.check_set(self.shards)

    def draw(self, requirements: ClipRequirements, count: int) -> list[DrawnClip]:
        """Returns up to `count` clips, spread evenly and the same ones every time, without broken ones."""
        return list(evenly_spaced_clips(self.shards, count, requirements))


@dataclass(frozen=True)
class FolderClips:
    """Audio files of a folder, each with `NAME.tokens.npy` beside it or tokenized here.

    X-vectors, where a checkpoint needs them, are stored beside the audio as `NAME.speaker.npy`; `NAME.json` may
    give `speaker` and `language`. Without it the speaker is the name of the folder that holds the file.
    """

    folder: Path
    tokenizer: Tokenizer | None = None

    @property
    def version(self) -> str:
        """Digest of the tokenizer, and of names, sizes and times of the audio and the files beside it."""
        beside = (path.with_suffix(f".{suffix}") for path in self._paths() for suffix in ("json", *PRECOMPUTED))
        files = [*self._paths(), *(path for path in beside if path.is_file())]
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        tokenizer = self.tokenizer.spec.digest if self.tokenizer else ""
        return digest_of(repr((tokenizer, stats)))

    def check(self, requirements: ClipRequirements) -> None:
        """Raises ValueError as `SetClips.check`; which tokenizer made tokens beside the audio is unknown."""
        if self.tokenizer is not None and not all(map(_has_tokens, self._paths())):
            requirements.check_tokenizer(self.tokenizer.spec, "--tokenizer")

    def warn_of_unused_tokenizer(self) -> None:
        """Logs for how many clips the tokenizer is not used, because they have tokens."""
        paths = self._paths()
        if self.tokenizer is not None and (count := sum(map(_has_tokens, paths))):
            log.warning(
                "%d of %d clips have tokens beside them: --tokenizer is not used for them", count, len(paths)
            )

    def draw(self, requirements: ClipRequirements, count: int) -> list[DrawnClip]:
        """Returns clips as `SetClips.draw`."""
        found = self._scan()
        paths = found.audio
        for line in found.lines:
            log.warning(line)
        self._warn_of_tokens_without_audio(paths)
        count = min(count, len(paths))
        return list(self._read([paths[i * len(paths) // count] for i in range(count)], paths, requirements))

    def _paths(self) -> tuple[Path, ...]:
        return self._scan().audio

    def _scan(self) -> Scan:
        if not any(path.is_file() for path in self.folder.rglob("*")):
            raise FileNotFoundError(f"--data: {self.folder} is empty: give a shard set or a folder of audio")
        try:
            found = scan(self.folder)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"--data: no audio in {self.folder}: an evaluation needs recordings to compare with; sf-decode "
                "decodes tokens alone"
            ) from None
        if found.tars:
            raise ValueError(f"--data: {self.folder} holds tars: build a shard set of them with sf-shards build")
        make_parts(found, len(found.audio))  # refuses files that would get the same key
        return found

    def _warn_of_tokens_without_audio(self, paths: Sequence[Path]) -> None:
        with_audio, ending = {path.with_suffix("") for path in paths}, ".tokens.npy"
        without = [
            path
            for path in sorted(self.folder.rglob(f"*{ending}"))
            if path.with_name(path.name.removesuffix(ending)) not in with_audio
        ]
        if without:
            log.warning("skipped %d files of tokens without audio, the first %s", len(without), without[0])

    def _read(
        self, chosen: Sequence[Path], paths: Sequence[Path], requirements: ClipRequirements
    ) -> Iterator[DrawnClip]:
        mel, tokens = requirements.mel, requirements.tokens
        assert tokens is not None
        for number, path in enumerate(chosen):
            source = self._source(path)
            start = np.random.default_rng([0, number]).random()
            try:
                if source.problem:
                    raise BadSample(source.cause, source.problem)
                raw = self._raw(source, requirements)
                clip = decode_clip(
                    raw, mel, tokens.vocabulary, tokens.frames_per_token, requirements.x_vector_width
                )
                other = self._other_of_speaker(source, path, paths)
                crop = reference_crop(_audio(other), mel, requirements.crop_samples, start)
            except BadSample as error:
                log.warning("skipped %s: %s", path, error)
            else:
                language = str(source.fields.get("language", ""))
                speaker = str(source.fields.get("speaker", ""))
                yield DrawnClip(clip, crop, language=language, is_own_reference=other is source, speaker=speaker)

    def _source(self, path: Path) -> CorpusClip:
        (source,) = FilesPart("", self.folder, (path,)).read()
        return source

    def _raw(self, source: CorpusClip, requirements: ClipRequirements) -> RawSample:
        """Returns a file and the files beside it as a sample of a shard, with tokens."""
        raw = _audio(source) | source.precomputed
        if "tokens.npy" not in raw:
            if self.tokenizer is None:
                spec = requirements.tokens
                assert spec is not None
                digest = f" (digest {spec.digest})" if spec.digest else ""
                raise ValueError(
                    f"--data: {source.key} in {self.folder} has no tokens beside it: give --tokenizer, the file of "
                    f"the checkpoint's tokenizer {spec.name}{digest}"
                )
            (tokens,) = self.tokenizer.encode([read_speech(source.audio, requirements.mel)])
            raw["tokens.npy"] = npy_bytes(tokens)
        return raw

    def _other_of_speaker(self, source: CorpusClip, path: Path, paths: Sequence[Path]) -> CorpusClip:
        """Returns another clip of the same speaker in the same folder, or else the clip itself."""
        neighbors = [other for other in paths if other.parent == path.parent and other != path]
        others = (self._source(other) for other in neighbors[:MAX_SEARCHED])
        return next((other for other in others if other.fields.get("speaker") == source.fields["speaker"]), source)


ClipSource: TypeAlias = SetClips | FolderClips


def open_clips(path: str, tokenizer: Tokenizer | None = None) -> ClipSource:
    """Opens a shard set or a folder of audio.

    Args:
        path: Path or URL of a shard set (see `Store`), or path of a folder.
        tokenizer: Tokenizer of audio that has no tokens beside it.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if a tokenizer was given for a shard set.
    """
    if Store(path).is_remote or Path(path, "manifest.json").is_file():
        if tokenizer is not None:
            raise ValueError(f"--tokenizer is for folders of audio, but {path} is a shard set: leave it out")
        return SetClips(ShardSet(path))
    if not Path(path).is_dir():
        raise FileNotFoundError(f"--data: no folder {path}: give a shard set or a folder of audio")
    folder = FolderClips(Path(path), tokenizer)
    folder.warn_of_unused_tokenizer()
    return folder


def _audio(source: CorpusClip) -> RawSample:
    return {"__key__": source.key, source.suffix: source.audio}


def _has_tokens(path: Path) -> bool:
    return path.with_suffix(".tokens.npy").is_file()
