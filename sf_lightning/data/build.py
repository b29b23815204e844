"""Builds a shard set from a corpus. Audio bytes are kept as they came.

Every unit of a corpus makes its own shards, each from a fixed run of its clips, whatever was skipped in
others. So units go to any number of processes and jobs, a build that was killed goes on after the last whole
shard, and the bytes are the same each time. All is written into a folder beside the target, and renamed when
the last unit is there: a set that looks whole is whole.
"""

import json
import multiprocessing
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.audio.wave import Wave
from sf_lightning.data import provenance
from sf_lightning.data.corpus import Unit
from sf_lightning.data.recipe import Recipe, samples_of
from sf_lightning.data.sample import BadSample, decode_clip, read_speech
from sf_lightning.data.shards import Manifest, ShardInfo, ShardSet
from sf_lightning.data.writer import ShardWriter, npy, replace_file
from sf_lightning.tokens.kmeans import KMeansTokenizer

MAX_FIT_SECONDS = 2 * 3600
"""K-means is fitted, and the look-up table made, on no more speech than this, spread over the corpus."""


SECONDS_BETWEEN_LINES = 60.0
"""How often a build without a terminal says how far it is."""


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
    if (made := provenance.made_before(out)) is not None:
        if different := provenance.differences(made, provenance.describe(units, recipe)):
            raise FileExistsError(
                f"{out} is there already, made by another build ({different}): delete it to build it anew, or give "
                "another --out"
            )
        return Manifest.load(out)
    partial = out.with_name(out.name + ".partial")
    _begin(partial, units, recipe)
    number, of = part
    mine = [unit for unit in units[number - 1 :: of] if not _mark(partial, unit).is_file()]
    _work(mine, partial, recipe, processes, f"writing {out}")
    if not all(_mark(partial, unit).is_file() for unit in units):
        return None
    return _finish(partial, out, units, recipe)


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


def _work(units: Sequence[Unit], partial: Path, recipe: Recipe, processes: int, title: str) -> None:
    """Builds units, and says how many hours are done, how fast, and how long it will take."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[hours]:.1f} h of speech, {task.fields[rate]:.0f} x real time"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(title, total=len(units), hours=0.0, rate=0.0)
        seconds, said_at = 0.0, 0.0

        def done(report: "Report") -> None:
            nonlocal seconds, said_at
            seconds += report.seconds
            for line in report.said:
                progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            elapsed = progress.tasks[task].elapsed or 1e-9
            hours, rate = seconds / 3600, seconds / elapsed
            progress.update(task, advance=1, hours=hours, rate=rate)
            # The log of a job shows no bar: a line a minute instead.
            if not progress.console.is_terminal and elapsed - said_at > SECONDS_BETWEEN_LINES:
                said_at, count = elapsed, progress.tasks[task].completed
                left = elapsed * (len(units) - count) / count / 3600
                print(
                    f"{title}: {count:.0f} of {len(units)}, {hours:.1f} h of speech, {rate:.0f} x real time, "
                    f"{left:.1f} h left",
                    flush=True,
                )

        if processes == 1:
            for unit in units:
                done(build_unit(unit, partial, recipe))
            return
        # Not forked: torch's threads do not survive a fork.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, spawn, _begin_process) as pool:
            futures = [pool.submit(build_unit, unit, partial, recipe) for unit in units]
            try:
                for future in futures:
                    done(future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _begin_process() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: a pool whose owner was killed waits for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@dataclass
class Report:
    """What building a unit gave: seconds of speech, and lines about clips that were left out."""

    seconds: float
    said: list[str]


def build_unit(unit: Unit, partial: Path, recipe: Recipe) -> Report:
    """Writes the shards of a unit, but for those that are there, and marks it done."""
    report, names, sources = Report(0.0, []), list[str](), unit.read()
    while run := list(islice(sources, recipe.shard_samples)):
        name = f"{unit.name}-{len(names):04d}" if names else unit.name
        names.append(name)
        if (partial / f"{name}.json").is_file():
            continue
        writer, skipped = ShardWriter(partial, name), Counter[str]()
        said: list[str] = []
        for sample in samples_of(run, recipe, skipped, said):
            writer.add(sample)
            report.seconds += sample.seconds
        report.said += [f"skipped for {name}: {line}" for line in said]
        writer.close(skipped)
    replace_file(_mark(partial, unit), json.dumps(names).encode())
    return report


def _finish(partial: Path, out: Path, units: Sequence[Unit], recipe: Recipe) -> Manifest:
    """Writes the manifest of a build whose units are all there, and gives the set its name."""
    try:
        return _gather(partial, out, units, recipe)
    except FileNotFoundError:
        if not (out / "manifest.json").is_file():
            raise
        return Manifest.load(out)  # another job has ended at the same time and was quicker


def _gather(partial: Path, out: Path, units: Sequence[Unit], recipe: Recipe) -> Manifest:
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
    for name, index in zip(names, indices, strict=True):
        if not index["rows"]:
            for suffix in (".tar", ".json"):
                (partial / f"{name}{suffix}").unlink(missing_ok=True)
    replace_file(partial / "manifest.json", manifest.as_json())
    replace_file(partial / "lookup.npy", npy(look_up(ShardSet(partial))))
    # The marks, and what killed jobs have left half-written.
    for path in [*partial.glob("*.done"), *partial.glob(".*")]:
        path.unlink(missing_ok=True)
    partial.rename(out)
    return manifest


def look_up(shards: ShardSet) -> NDArray[np.float32]:
    """Returns the mean mel of each token, [vocabulary, frames_per_token, F]; tokens never seen get the mean of all.

    The best decoder that has no network, shown as a baseline. Made of at most `MAX_FIT_SECONDS` of the set.
    """
    manifest = shards.manifest
    spec, to_mel = manifest.tokenizer, MelSpectrogram(manifest.mel)
    total = np.zeros((spec.vocabulary, spec.frames_per_token, manifest.mel.num_bands))
    count, seconds = np.zeros(spec.vocabulary), 0.0
    for number in np.random.default_rng(0).permutation(len(manifest.shards)):
        if seconds >= MAX_FIT_SECONDS:
            break
        for raw in shards.read(int(number)):
            clip = decode_clip(raw, manifest.mel, spec.vocabulary, spec.frames_per_token)
            with torch.inference_mode():
                mel = to_mel(torch.from_numpy(clip.wave)[None])[0].numpy()
            np.add.at(total, clip.tokens, mel.reshape(len(clip.tokens), spec.frames_per_token, -1))
            np.add.at(count, clip.tokens, 1)
            seconds += len(clip.wave) / manifest.mel.sample_rate
    overall, seen = total.sum(0) / max(1.0, count.sum()), count[:, None, None]
    return np.where(seen > 0, total / np.maximum(seen, 1), overall).astype(np.float32)
