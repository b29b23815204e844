"""Builds a shard set from a corpus. Audio bytes are kept as they came.

Every unit of a corpus makes its own shards, each from a fixed run of its clips, whatever was skipped in
others. So units go to any number of processes and jobs, a build that was killed goes on after the last whole
shard, and the bytes are the same each time. All is written into a folder beside the target, and renamed when
the last unit is there: a set that looks whole is whole.
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
from sf_lightning.data.corpus import Source, Unit
from sf_lightning.data.lookup import MAX_FIT_SECONDS, look_up
from sf_lightning.data.recipe import Recipe, samples_of
from sf_lightning.data.sample import BadSample, read_speech
from sf_lightning.data.shards import Manifest, ShardInfo, ShardSet
from sf_lightning.data.work import Tally, work
from sf_lightning.data.writer import ShardWriter, npy, replace_file
from sf_lightning.tokens.kmeans import KMeansTokenizer


def build(
    units: Sequence[Unit], out: Path, recipe: Recipe, part: tuple[int, int] = (1, 1), processes: int = 1
) -> Manifest | None:
    """Writes a shard set, or goes on with one; one that this very build has made is left as it is.

    Args:
        units: Of the corpus, the same for every part.
        out: The folder to make.
        recipe: How.
        part: Which part of how many this job does, (1, 1) being all.
        processes: That work side by side.

    Returns:
        The manifest; None while other parts are missing.

    Raises:
        FileExistsError: if `out` is there already, and not made by this build.
        ValueError: if the build that is to be continued was another one, or not one clip could be used.
    """
    if (manifest := _made(out, units, recipe)) is not None:
        return manifest
    partial = out.with_name(out.name + ".partial")
    number, of = part
    try:
        _begin(partial, units, recipe)
        if out.exists():  # another job has given it its name, before this one began the folder anew
            raise FileExistsError(out)
        mine = [unit for unit in units[number - 1 :: of] if not _mark(partial, unit).is_file()]
        do = functools.partial(build_unit, partial=partial, recipe=recipe)
        work(do, mine, sum(unit.bytes for unit in mine), processes, f"writing {out}")
        if all(_mark(partial, unit).is_file() for unit in units):
            manifest = _gather(partial, out, units, recipe)
            _tidy(out, units, manifest)
            return manifest
    except OSError as error:
        # Of jobs that end at the same time one is the quicker, and takes the folder away from under the others.
        if not out.exists():
            raise _explained(error, partial) from error
        shutil.rmtree(partial, ignore_errors=True)
    return _made(out, units, recipe)


def _made(out: Path, units: Sequence[Unit], recipe: Recipe) -> Manifest | None:
    """Returns the manifest of the set, if this very build has made it, tidied up; None if there is no set yet.

    Raises:
        FileExistsError: if something else is there.
    """
    if (made := provenance.made_before(out)) is None:
        return None
    if different := provenance.differences(made, provenance.describe(units, recipe)):
        raise FileExistsError(
            f"{out} is there already, made by another build ({different}): delete it to build it anew, or give "
            "another --out"
        )
    manifest = Manifest.load(out)
    _tidy(out, units, manifest)
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


def fit_tokenizer(units: Sequence[Unit], vocabulary: int, mel: MelConfig) -> KMeansTokenizer:
    """Fits k-means tokens on at most `MAX_FIT_SECONDS` of a corpus, a little of every unit."""
    share = max(10.0, MAX_FIT_SECONDS / len(units))

    def waves() -> Iterator[Wave]:
        total = 0.0
        for i in np.random.default_rng(0).permutation(len(units)):
            seconds = 0.0
            for source in units[i].read():
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


def _begin(partial: Path, units: Sequence[Unit], recipe: Recipe) -> None:
    """Makes the folder, or checks that the build begun there is this one."""
    build = provenance.describe(units, recipe)
    if (begun := provenance.load(partial)) is not None:
        if different := provenance.differences(begun, build):
            raise ValueError(
                f"{partial} holds another build ({different}): give the same options and files to go on, or "
                "delete the folder to begin again"
            )
        return
    partial.mkdir(parents=True, exist_ok=True)
    provenance.save(partial, build)


def _mark(partial: Path, unit: Unit) -> Path:
    """The file that says that a unit is done, and names its shards."""
    return partial / f"{unit.name}.done"


def build_unit(unit: Unit, tally: Tally, partial: Path, recipe: Recipe) -> list[str]:
    """Writes the shards of a unit, but for those that are there, and marks it done.

    Args:
        unit: Of the corpus.
        tally: Counts its bytes after every shard, and the speech that was written after every clip.
        partial: The folder of the build.
        recipe: How.

    Returns:
        A line about each clip that was left out.
    """
    said, names, seen, sources = list[str](), list[str](), 0, unit.read()
    while run := list(islice(sources, recipe.shard_samples)):
        name = f"{unit.name}-{len(names):04d}" if names else unit.name
        names.append(name)
        size = sum(len(source.audio) for source in run)
        seen += size
        if (partial / f"{name}.json").is_file():
            tally.add(passed=size)
            continue
        said += [f"skipped for {name}: {line}" for line in _write(run, tally, partial, name, recipe)]
        tally.add(made=size)
    tally.add(passed=max(0, unit.bytes - seen))  # texts, headers, padding
    replace_file(_mark(partial, unit), json.dumps(names).encode())
    return said


def _write(run: Sequence[Source], tally: Tally, partial: Path, name: str, recipe: Recipe) -> list[str]:
    """Writes a shard, and says which of its clips were left out."""
    writer, skipped, said = ShardWriter(partial, name), Counter[str](), list[str]()
    try:
        for sample in samples_of(run, recipe, skipped, said):
            writer.add(sample)
            tally.add(seconds=sample.seconds)
        writer.close(skipped)
    except BaseException:
        writer.abandon()
        raise
    return said


def _gather(partial: Path, out: Path, units: Sequence[Unit], recipe: Recipe) -> Manifest:
    """Writes the manifest of a build whose units are all there, and gives the set its name.

    Nothing is taken away before: a job that is killed here, or is not alone, finds all it needs.

    Raises:
        ValueError: if not one clip could be used.
    """
    names = [name for unit in units for name in json.loads(_mark(partial, unit).read_text())]
    indices = [json.loads((partial / f"{name}.json").read_text()) for name in names]
    skipped = Counter[str]()
    for index in indices:
        skipped.update(index["skipped"])
    infos = tuple(ShardInfo(**index["info"]) for index in indices if index["rows"])
    if not infos:
        shutil.rmtree(partial)
        counts = ", ".join(f"{cause}: {count}" for cause, count in skipped.items()) or "there were none"
        raise ValueError(f"not one clip could be used ({counts}): nothing was written")
    manifest = Manifest(recipe.mel, recipe.spec, infos, dict(skipped), recipe.speaker.name, recipe.speaker.width)
    replace_file(partial / "manifest.json", manifest.as_json())
    replace_file(partial / lookup.NAME, npy(look_up(ShardSet(partial))))
    partial.rename(out)
    return manifest


def _tidy(out: Path, units: Sequence[Unit], manifest: Manifest) -> None:
    """Takes away what a build needed and a set does not: marks, shards of no samples, what killed jobs left."""
    kept = {info.name for info in manifest.shards}
    marks = [mark for unit in units if (mark := _mark(out, unit)).is_file()]
    for path in out.glob(".*") if marks else ():
        path.unlink(missing_ok=True)
    for mark in marks:
        with suppress(FileNotFoundError):  # another job tidies up as well
            for name in json.loads(mark.read_text()):
                if f"{name}.tar" not in kept:
                    for suffix in (".tar", ".json"):
                        (out / f"{name}{suffix}").unlink(missing_ok=True)
        mark.unlink(missing_ok=True)  # last: while it is there, this is done again when it was killed
