"""Builds a shard set from a corpus. Audio bytes are kept as they came.

Every part of a corpus makes its own shards, each from a fixed run of its clips, whatever was skipped in
others. So parts go to any number of processes and jobs, a build that was killed goes on after the last whole
shard, and the bytes are the same each time. All is written into a folder beside the target, and renamed when
the last part is there: a set that looks whole is whole.
"""

import errno
import functools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console

from sf_lightning.audio.mel import MelConfig
from sf_lightning.audio.wave import Wave
from sf_lightning.data import lookup, provenance
from sf_lightning.data.build_config import BuildConfig, samples_of
from sf_lightning.data.corpus import CorpusClip, CorpusPart
from sf_lightning.data.jobs import ProgressCounter, run_jobs
from sf_lightning.data.lookup import MAX_FIT_SECONDS, mean_token_mels
from sf_lightning.data.sample import BadSample, read_speech
from sf_lightning.data.shards import Manifest, ShardInfo, ShardSet
from sf_lightning.data.writer import ShardWriter, npy_bytes
from sf_lightning.files.atomic import write_atomically
from sf_lightning.tokens.kmeans import KMeansTokenizer


def build(
    parts: Sequence[CorpusPart],
    out: Path,
    config: BuildConfig,
    job_slice: tuple[int, int] = (1, 1),
    processes: int = 1,
) -> Manifest | None:
    """Writes a shard set, or goes on with one; one that this very build has made is left as it is.

    Args:
        parts: Of the corpus, the same for every part.
        out: The folder to make.
        config: How.
        part: Which part of how many this job does, (1, 1) being all.
        processes: That work side by side.

    Returns:
        The manifest; None while other parts are missing.

    Raises:
        FileExistsError: if `out` is there already, and not made by this build.
        ValueError: if the build that is to be continued was another one, or not one clip could be used.
    """
    if (manifest := _made(out, parts, config)) is not None:
        return manifest
    partial = out.with_name(out.name + ".partial")
    number, of = job_slice
    try:
        _begin(partial, parts, config)
        if out.exists():  # another job has given it its name, before this one began the folder anew
            raise FileExistsError(out)
        mine = [part for part in parts[number - 1 :: of] if not _mark(partial, part).is_file()]
        do = functools.partial(build_part, partial=partial, config=config)
        run_jobs(do, mine, sum(part.bytes for part in mine), processes, f"writing {out}")
        if all(_mark(partial, part).is_file() for part in parts):
            manifest = _gather(partial, out, parts, config)
            _tidy(out, parts, manifest)
            return manifest
    except OSError as error:
        # Of jobs that end at the same time one is the quicker, and takes the folder away from under the others.
        if not out.exists():
            raise _explained(error, partial) from error
        shutil.rmtree(partial, ignore_errors=True)
    return _made(out, parts, config)


def _made(out: Path, parts: Sequence[CorpusPart], config: BuildConfig) -> Manifest | None:
    """Returns the manifest of the set, if this very build has made it, tidied up; None if there is no set yet.

    Raises:
        FileExistsError: if something else is there.
    """
    if (made := provenance.made_before(out)) is None:
        return None
    if different := provenance.differences(made, provenance.describe(parts, config)):
        raise FileExistsError(
            f"{out} is there already, made by another build ({different}): delete it to build it anew, or give "
            "another --out"
        )
    manifest = Manifest.load(out)
    _tidy(out, parts, manifest)
    return manifest


def _explained(error: OSError, partial: Path) -> OSError:
    """Says what to do about a disk that is full, or a folder that is gone; other errors say it themselves."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(
            f"{partial}: {error.strerror}: make room and start the same command again, it goes on after the last "
            "whole shard"
        )
    if not partial.exists() and isinstance(error, FileNotFoundError):
        return FileNotFoundError(
            f"{partial} is gone while it was worked on: it was deleted, or another job found that not one clip can "
            "be used (its log says why)"
        )
    return error


def fit_tokenizer(parts: Sequence[CorpusPart], vocabulary: int, mel: MelConfig) -> KMeansTokenizer:
    """Fits k-means tokens on at most `MAX_FIT_SECONDS` of a corpus, a little of every part."""
    share = max(10.0, MAX_FIT_SECONDS / len(parts))

    def waves() -> Iterator[Wave]:
        total = 0.0
        for i in np.random.default_rng(0).permutation(len(parts)):
            seconds = 0.0
            for source in parts[i].read():
                if seconds >= share or total >= MAX_FIT_SECONDS:
                    break
                try:
                    wave = read_speech(source.audio, mel)
                except BadSample:
                    continue  # counted and named when the shards are written
                seconds += len(wave) / mel.sample_rate
                total += len(wave) / mel.sample_rate
                yield wave

    with Console().status(f"fitting {vocabulary} codes"):
        return KMeansTokenizer.fit(waves(), vocabulary)


def _begin(partial: Path, parts: Sequence[CorpusPart], config: BuildConfig) -> None:
    """Makes the folder, or checks that the build begun there is this one."""
    build = provenance.describe(parts, config)
    if (begun := provenance.load(partial)) is not None:
        if different := provenance.differences(begun, build):
            raise ValueError(
                f"{partial} holds another build ({different}): give the same options and files to go on, or "
                "delete the folder to begin again"
            )
        return
    partial.mkdir(parents=True, exist_ok=True)
    provenance.save(partial, build)


def _mark(partial: Path, part: CorpusPart) -> Path:
    """The file that says that a part is done, and names its shards."""
    return partial / f"{part.name}.done"


def build_part(part: CorpusPart, counter: ProgressCounter, partial: Path, config: BuildConfig) -> list[str]:
    """Writes the shards of a part, but for those that are there, and marks it done.

    Args:
        part: Of the corpus.
        counter: Counts its bytes after every shard, and the speech that was written after every clip.
        partial: The folder of the build.
        config: How.

    Returns:
        A line about each clip that was left out.
    """
    said, names, seen, sources = list[str](), list[str](), 0, part.read()
    while run := list(islice(sources, config.shard_samples)):
        name = f"{part.name}-{len(names):04d}" if names else part.name
        names.append(name)
        size = sum(len(source.audio) for source in run)
        seen += size
        if (partial / f"{name}.json").is_file():
            counter.add(passed=size)
            continue
        said += [f"skipped for {name}: {line}" for line in _write(run, counter, partial, name, config)]
        counter.add(made=size)
    counter.add(passed=max(0, part.bytes - seen))  # texts, headers, padding
    write_atomically(_mark(partial, part), json.dumps(names).encode())
    return said


def _write(
    run: Sequence[CorpusClip], counter: ProgressCounter, partial: Path, name: str, config: BuildConfig
) -> list[str]:
    """Writes a shard, and says which of its clips were left out."""
    writer, skipped, said = ShardWriter(partial, name), Counter[str](), list[str]()
    try:
        for sample in samples_of(run, config, skipped, said):
            writer.add(sample)
            counter.add(seconds=sample.seconds)
        writer.close(skipped)
    except BaseException:
        writer.abandon()
        raise
    return said


def _gather(partial: Path, out: Path, parts: Sequence[CorpusPart], config: BuildConfig) -> Manifest:
    """Writes the manifest of a build whose parts are all there, and gives the set its name.

    Nothing is taken away before: a job that is killed here, or is not alone, finds all it needs.

    Raises:
        ValueError: if not one clip could be used.
    """
    names = [name for part in parts for name in json.loads(_mark(partial, part).read_text())]
    indices = [json.loads((partial / f"{name}.json").read_text()) for name in names]
    skipped = Counter[str]()
    for index in indices:
        skipped.update(index["skipped"])
    infos = tuple(ShardInfo(**index["info"]) for index in indices if index["rows"])
    if not infos:
        shutil.rmtree(partial)
        counts = ", ".join(f"{cause}: {count}" for cause, count in skipped.items()) or "there were none"
        raise ValueError(f"not one clip could be used ({counts}): nothing was written")
    manifest = Manifest(config.mel, config.spec, infos, dict(skipped), config.speaker.name, config.speaker.width)
    write_atomically(partial / "manifest.json", manifest.as_json())
    write_atomically(partial / lookup.NAME, npy_bytes(mean_token_mels(ShardSet(partial))))
    partial.rename(out)
    return manifest


def _tidy(out: Path, parts: Sequence[CorpusPart], manifest: Manifest) -> None:
    """Takes away what a build needed and a set does not: marks, shards of no samples, what killed jobs left."""
    kept = {info.name for info in manifest.shards}
    marks = [mark for part in parts if (mark := _mark(out, part)).is_file()]
    for path in out.glob(".*") if marks else ():
        path.unlink(missing_ok=True)
    for mark in marks:
        with suppress(FileNotFoundError):  # another job tidies up as well
            for name in json.loads(mark.read_text()):
                if f"{name}.tar" not in kept:
                    for suffix in (".tar", ".json"):
                        (out / f"{name}{suffix}").unlink(missing_ok=True)
        mark.unlink(missing_ok=True)  # last: while it is there, this is done again when it was killed
