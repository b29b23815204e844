"""Checks shards, and mends them. Knows nothing of how they are read in training."""

import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from webdataset.tariterators import tarfile_samples

from sf_lightning.data import lookup
from sf_lightning.data.corpus import CorpusClip
from sf_lightning.data.index import parse_index
from sf_lightning.data.jobs import ProgressCounter, run_jobs
from sf_lightning.data.sample import BadSample, RawSample, decode_clip, find_audio, read_tokens
from sf_lightning.data.shards import ShardInfo, ShardSet, index_name
from sf_lightning.data.writer import Sample, ShardWriter, npy_bytes
from sf_lightning.files.atomic import write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """Something wrong in a set.

    Attributes:
        shard: Number of the shard; None where it is the look-up table.
        file: Its name.
        key: Of the sample, empty where it is the whole file.
        what: What is wrong.
    """

    shard: int | None
    file: str
    key: str
    what: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.file, self.key, self.what)))


def verify(shards: ShardSet, job_slice: tuple[int, int] = (1, 1), processes: int = 1) -> list[Problem]:
    """Reads a set, or a part of it, says how far it is, and prints and returns what is wrong.

    Args:
        shards: The set.
        part: Which part of its shards of how many, (1, 1) being all; the look-up table belongs to the first.
        processes: That read side by side.
    """
    number, of = job_slice
    manifest = shards.manifest
    numbers = range(len(manifest.shards))[number - 1 :: of]
    # A set as new: its manifest, already read, would go to every process.
    do = functools.partial(_verify, shards=ShardSet(shards.folder, shards.cache_gb))
    total = sum(manifest.shards[each].bytes for each in numbers)
    items = [*([None] if number == 1 else []), *numbers]
    return run_jobs(do, items, total, processes, f"verifying {shards.folder}")


def _verify(number: int | None, counter: ProgressCounter, shards: ShardSet) -> list[Problem]:
    """Checks and counts a shard, or the look-up table, which has no number."""
    if number is None:
        return verify_table(shards)
    problems, info = verify_shard(shards, number), shards.manifest.shards[number]
    counter.add(info.bytes, info.seconds)
    return problems


def verify_table(shards: ShardSet) -> list[Problem]:
    """Returns what is wrong with the look-up table of a set."""
    reason = lookup.reason_against(shards)
    return [Problem(None, lookup.NAME, "", reason)] if reason else []


def verify_shard(shards: ShardSet, number: int) -> list[Problem]:
    """Reads a shard whole and returns what is wrong with it and with every sample that training would skip."""
    info, problems = shards.manifest.shards[number], list[Problem]()

    def note(key: str, what: str) -> None:
        problems.append(Problem(number, info.name, key, what))

    try:
        rows = shards.read_index(number)
        digest = _digest(shards, info)
    except (OSError, ValueError) as error:
        note("", f"cannot be read: {error}")
        return problems
    if digest != info.digest:
        note("", f"digest {digest[:12]}, the manifest has {info.digest[:12]}")
    if (came := sum(row.tokens for row in rows)) != info.tokens:
        note("", f"{came} tokens in the index, the manifest has {info.tokens}")
    found: Counter[str] = Counter()
    for raw in shards.read_samples(number):
        found[raw["__key__"]] += 1
        if reason := _reason_against(shards, raw):
            note(raw["__key__"], reason)
    for key in (row.key for row in rows if not found[row.key]):
        note(key, "damaged: not in the tar as the index has it")
    return problems


def _digest(shards: ShardSet, info: ShardInfo) -> str:
    with shards.open(info.name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason_against(shards: ShardSet, raw: RawSample) -> str | None:
    manifest = shards.manifest
    spec, width = manifest.tokenizer, manifest.x_vector_width
    try:
        decode_clip(raw, manifest.mel, spec.vocabulary, spec.frames_per_token, width)
    except BadSample as error:
        return str(error)
    return None


def _known(shards: ShardSet, number: int) -> Iterator[RawSample]:
    """Yields the samples that are what was written: the index knows what was, or else the digest of the tar."""
    info = shards.manifest.shards[number]
    tar, index = (Path(shards.folder, name) for name in (info.name, index_name(info)))
    try:
        # Not as many as the manifest has: a repair that was killed has written this shard again already.
        rows = parse_index(index.read_bytes(), None, max(info.bytes, tar.stat().st_size))
    except (OSError, ValueError) as error:
        if tar.is_file() and _digest(shards, info) == info.digest:
            yield from tarfile_samples(iter([{"url": str(tar)}]))  # type: ignore[misc]
        else:
            log.warning("%s is given up, for nothing says what was in it: %s", info.name, error)
    else:
        yield from shards.read_samples(number, rows)


def _skipped(folder: Path, info: ShardInfo) -> dict[str, int]:
    """What was left out of a shard when it was built; nothing, if its index is no more."""
    try:
        return dict(json.loads((folder / index_name(info)).read_bytes())["skipped"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _write_again(shards: ShardSet, number: int) -> ShardInfo:
    """Writes a shard without its broken samples."""
    folder, manifest, info = Path(shards.folder), shards.manifest, shards.manifest.shards[number]
    writer, skipped = ShardWriter(folder, Path(info.name).stem), _skipped(folder, info)
    try:
        for raw in _known(shards, number):
            if not _reason_against(shards, raw):
                (suffix, audio), fields = find_audio(raw), json.loads(raw["json"])
                tokens = read_tokens(raw["tokens.npy"], manifest.tokenizer.vocabulary)
                source = CorpusClip(raw["__key__"], suffix, audio, fields)
                writer.add(Sample(source, tokens, raw.get("speaker.npy", b""), fields["duration"]))
        return writer.close(skipped)
    except BaseException:
        writer.abandon()
        raise


def repair(shards: ShardSet, numbers: Iterable[int]) -> int:
    """Writes shards again without their broken samples, then the manifest, and then the look-up table.

    Args:
        shards: A set in a folder.
        numbers: Of the shards; without any the table alone is made again.

    Returns:
        How many samples are gone.

    Raises:
        ValueError: if the set lies elsewhere, or not one sample of it is good.
    """
    folder, manifest = Path(shards.folder), shards.manifest
    if not folder.is_dir():
        raise ValueError(f"{shards.folder} is no folder here: only a set in a folder can be repaired")
    infos = list(manifest.shards)
    # Of samples that will be gone: a repair that is killed leaves no table rather than that one.
    (folder / lookup.NAME).unlink(missing_ok=True)
    for number in numbers:
        infos[number] = _write_again(shards, number)
    left = tuple(info for info in infos if info.samples)
    if not left:
        raise ValueError(f"{folder}: not one sample is good: build the set again")
    write_atomically(folder / "manifest.json", replace(manifest, shards=left).as_json())
    for info in infos:
        if not info.samples:  # the manifest does not have it any more
            for name in (info.name, index_name(info)):
                (folder / name).unlink(missing_ok=True)
    write_atomically(folder / lookup.NAME, npy_bytes(lookup.mean_token_mels(ShardSet(folder))))
    return shards.samples - sum(info.samples for info in left)
