"""Builds a shard set from a corpus. Audio files keep their bytes.

Every part of a corpus makes its own shards, each from a fixed range of its clips, so that skipped clips do
not shift others. Parts can therefore be shared among any number of processes and jobs, an interrupted build
resumes after the last complete shard, and the bytes are the same each time. All files are written to a folder
beside the target, which is renamed when the last part is done: a set under its final name is always complete.
"""

import errno
import functools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console

from sf_lightning.audio.mel import MelConfig
from sf_lightning.audio.wave import Wave
from sf_lightning.data import lookup, provenance
from sf_lightning.data.build_config import BuildConfig, SkippedClips, make_samples
from sf_lightning.data.corpus import CorpusClip, CorpusPart
from sf_lightning.data.jobs import ProgressCounter, run_jobs
from sf_lightning.data.lookup import MAX_FIT_SECONDS, mean_token_mels
from sf_lightning.data.sample import BadSample, read_speech
from sf_lightning.data.shards import Manifest, ShardInfo, ShardSet
from sf_lightning.data.writer import ShardWriter, npy_bytes
from sf_lightning.files.atomic import write_atomically
from sf_lightning.files.text import get_logger
from sf_lightning.tokens.kmeans import KMeansTokenizer

log = get_logger(__name__)


def build(
    parts: Sequence[CorpusPart],
    out: Path,
    config: BuildConfig,
    job_slice: tuple[int, int] = (1, 1),
    processes: int = 1,
    left_out: Mapping[str, int] | None = None,
) -> Manifest | None:
    """Builds a shard set, or resumes an interrupted build; a set that this build completed before is left as it is.

    Args:
        parts: All parts of the corpus, the same for every job.
        out: Folder of the set.
        config: How clips become samples.
        job_slice: (k, n): this job does every n-th part, starting with the k-th; (1, 1) does all.
        processes: Number of processes.
        left_out: Number of files that are no part of the corpus, by cause; the manifest counts them too.

    Returns:
        The manifest; None while other jobs have parts left.

    Raises:
        FileExistsError: if `out` exists and another build made it.
        ValueError: if an interrupted build had other options or files, or no clip can be used.
    """
    if (manifest := _load_built(out, parts, config)) is not None:
        return manifest
    partial = out.with_name(out.name + ".partial")
    number, count = job_slice
    try:
        _start_build(partial, parts, config)
        if out.exists():  # another job completed and renamed the set before this one created the folder again
            raise FileExistsError(out)
        missing = [part for part in parts[number - 1 :: count] if not _done_mark(partial, part).is_file()]
        do = functools.partial(build_part, partial=partial, config=config)
        run_jobs(do, missing, sum(part.bytes for part in missing), processes, f"writing {out}")
        if all(_done_mark(partial, part).is_file() for part in parts):
            manifest = _publish(partial, out, parts, config, left_out or {})
            _clean_up(out, parts, manifest)
            return manifest
    except OSError as error:
        # Of jobs that end at the same time the first renames the folder, and the others no longer find it.
        if not out.exists():
            raise _error_with_remedy(error, partial) from error
        shutil.rmtree(partial, ignore_errors=True)
    return _load_built(out, parts, config)


def _load_built(out: Path, parts: Sequence[CorpusPart], config: BuildConfig) -> Manifest | None:
    """Returns the manifest if this build made the set at `out`, None if nothing is there; else FileExistsError."""
    if (built := provenance.load_existing(out)) is None:
        return None
    if different := provenance.differences(built, provenance.describe(parts, config)):
        raise FileExistsError(
            f"{out} exists already, made by another build ({different}): delete it to build it again, or give "
            "another --out"
        )
    manifest = Manifest.load(out)
    _clean_up(out, parts, manifest)
    return manifest


def _error_with_remedy(error: OSError, partial: Path) -> OSError:
    """Returns an error with a remedy if the disk is full or the folder is gone; otherwise the same error."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(
            f"{partial}: {error.strerror}: free some space and start the same command again, it resumes after the "
            "last complete shard"
        )
    if not partial.exists() and isinstance(error, FileNotFoundError):
        return FileNotFoundError(
            f"{partial} disappeared during the build: it was deleted, or another job found no usable clip (its log "
            "has the reason)"
        )
    return error


def fit_tokenizer(parts: Sequence[CorpusPart], vocabulary: int, mel: MelConfig) -> KMeansTokenizer:
    """Fits a k-means tokenizer on at most `MAX_FIT_SECONDS` of a corpus, spread over its parts.

    Raises:
        ValueError: if the corpus is too small for the vocabulary.
    """
    share = max(10.0, MAX_FIT_SECONDS / len(parts))

    def waves() -> Iterator[Wave]:
        total = 0.0
        for i in np.random.default_rng(0).permutation(len(parts)):
            seconds = 0.0
            for clip in parts[i].read():
                if seconds >= share or total >= MAX_FIT_SECONDS:
                    break
                try:
                    wave = read_speech(clip.audio, mel)
                except BadSample:
                    continue  # counted and reported when the shards are written
                seconds += len(wave) / mel.sample_rate
                total += len(wave) / mel.sample_rate
                yield wave

    with Console().status(f"fitting {vocabulary} codes"):
        return KMeansTokenizer.fit(waves(), vocabulary)


def _start_build(partial: Path, parts: Sequence[CorpusPart], config: BuildConfig) -> None:
    """Creates the folder of an unfinished build, or checks that the one that exists is of this build."""
    build = provenance.describe(parts, config)
    if (started := provenance.load(partial)) is None:
        partial.mkdir(parents=True, exist_ok=True)
        provenance.save(partial, build)
    elif different := provenance.differences(started, build):
        raise ValueError(
            f"{partial} has an unfinished build with other options or files ({different}): give the same ones to "
            "resume it, or delete the folder to start again"
        )


def _done_mark(partial: Path, part: CorpusPart) -> Path:
    """Returns the path of the file that marks a part as done and lists its shards."""
    return partial / f"{part.name}.done"


def _read_mark(mark: Path) -> dict[str, list[str]]:
    """Returns the names of a part's shards, and of the blocked speakers that its clips have."""
    return json.loads(mark.read_text())


def build_part(part: CorpusPart, counter: ProgressCounter, partial: Path, config: BuildConfig) -> list[str]:
    """Writes the shards of a part that are missing in the folder of an unfinished build, and marks it as done.

    Bytes are counted after every shard, seconds of speech after every clip.

    Returns:
        A line about each clip that was skipped.
    """
    lines, names, num_bytes, clips = list[str](), list[str](), 0, part.read()
    blocked = set[str]()
    while shard_clips := list(islice(clips, config.shard_samples)):
        name = f"{part.name}-{len(names):04d}" if names else part.name
        names.append(name)
        blocked |= config.filters.blocked_speakers & {str(clip.fields.get("speaker")) for clip in shard_clips}
        size = sum(len(clip.audio) for clip in shard_clips)
        num_bytes += size
        if (partial / f"{name}.json").is_file():
            counter.add(reused=size)
            continue
        lines += [
            f"skipped for {name}: {line}" for line in _write_shard(shard_clips, counter, partial, name, config)
        ]
        counter.add(processed=size)
    counter.add(reused=max(0, part.bytes - num_bytes))  # texts, headers, padding
    write_atomically(_done_mark(partial, part), json.dumps({"shards": names, "blocked": sorted(blocked)}))
    return lines


def _write_shard(
    clips: Sequence[CorpusClip], counter: ProgressCounter, partial: Path, name: str, config: BuildConfig
) -> list[str]:
    """Writes a shard, and returns a line about each clip that was skipped."""
    skipped = SkippedClips()
    with ShardWriter(partial, name) as writer:
        for sample in make_samples(clips, config, skipped):
            writer.add(sample)
            counter.add(seconds=sample.seconds)
        writer.finish(skipped.counts)
    return skipped.lines


def _publish(
    partial: Path, out: Path, parts: Sequence[CorpusPart], config: BuildConfig, left_out: Mapping[str, int]
) -> Manifest:
    """Writes the manifest and the lookup table, and renames the folder to its final name."""
    # Nothing is deleted before the rename, because another job may be here too, or repeat this after a kill.
    done = [_read_mark(_done_mark(partial, part)) for part in parts]
    indices = [json.loads((partial / f"{name}.json").read_text()) for mark in done for name in mark["shards"]]
    skipped = Counter(left_out)
    for index in indices:
        skipped.update(index["skipped"])
    infos = tuple(ShardInfo(**index["info"]) for index in indices if index["rows"])
    if not infos:
        shutil.rmtree(partial)
        counts = ", ".join(f"{cause}: {count}" for cause, count in skipped.items()) or "the corpus has none"
        raise ValueError(f"no clip of the corpus can be used ({counts}): no set was written")
    manifest = Manifest(config.mel, config.spec, infos, dict(skipped), config.speaker.name, config.speaker.width)
    write_atomically(partial / "manifest.json", manifest.as_json())
    write_atomically(partial / lookup.NAME, npy_bytes(mean_token_mels(ShardSet(partial))))
    partial.rename(out)
    unmet = config.filters.blocked_speakers.difference(*(mark["blocked"] for mark in done))
    if unmet:
        log.warning("no clip is of %d of the blocked speakers: %s", len(unmet), ", ".join(sorted(unmet)[:20]))
    return manifest


def _clean_up(out: Path, parts: Sequence[CorpusPart], manifest: Manifest) -> None:
    """Deletes marks, shards without samples, and temporary files of killed jobs from a complete set."""
    kept = {info.name for info in manifest.shards}
    marks = [mark for part in parts if (mark := _done_mark(out, part)).is_file()]
    for path in out.glob(".*") if marks else ():
        path.unlink(missing_ok=True)
    for mark in marks:
        with suppress(FileNotFoundError):  # another job cleans up as well
            for name in _read_mark(mark)["shards"]:
                if f"{name}.tar" not in kept:
                    for suffix in (".tar", ".json"):
                        (out / f"{name}{suffix}").unlink(missing_ok=True)
        mark.unlink(missing_ok=True)  # last: while it exists, an interrupted clean-up is repeated
