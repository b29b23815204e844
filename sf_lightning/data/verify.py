"""Verifies and repairs shards. Independent of how training reads them."""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from webdataset.tariterators import tarfile_samples

from sf_lightning.data import lookup
from sf_lightning.data.corpus import CorpusClip
from sf_lightning.data.index import is_safe_key, parse_index
from sf_lightning.data.jobs import ProgressCounter, run_jobs
from sf_lightning.data.sample import BadSample, RawSample, find_audio, read_tokens
from sf_lightning.data.shards import ShardInfo, ShardSet
from sf_lightning.data.writer import Sample, ShardWriter, npy_bytes
from sf_lightning.files.atomic import write_atomically
from sf_lightning.files.digest import file_digest
from sf_lightning.files.npy import read_npy
from sf_lightning.files.records import parse_json
from sf_lightning.files.text import get_logger, printable

log = get_logger(__name__)


@dataclass(frozen=True)
class Problem:
    """A problem in a set.

    Attributes:
        shard: Number of the shard; None for the lookup table.
        file: Name of the file.
        key: Key of the sample; empty if it concerns the whole file.
        description: Description of the problem.
    """

    shard: int | None
    file: str
    key: str
    description: str

    def __str__(self) -> str:
        return printable(": ".join(filter(None, (self.file, self.key, self.description))))


def verify(shards: ShardSet, job_slice: tuple[int, int] = (1, 1), processes: int = 1) -> list[Problem]:
    """Reads a set, or a slice of its shards, reports progress, and prints and returns the problems.

    Args:
        shards: The set.
        job_slice: (k, n): every n-th shard is read, starting with the k-th; (1, 1) reads all. The lookup table
            belongs to the first slice.
        processes: Number of processes.
    """
    number, count = job_slice
    manifest = shards.manifest
    numbers = range(len(manifest.shards))[number - 1 :: count]
    # A new object, because the manifest that this one has read would be sent to every process.
    do = functools.partial(_verify_item, shards=ShardSet(shards.folder, shards.cache_gb))
    total = sum(manifest.shards[shard].bytes for shard in numbers)
    items = [*([None] if number == 1 else []), *numbers]
    return run_jobs(do, items, total, processes, f"verifying {shards.name}")


def _verify_item(number: int | None, counter: ProgressCounter, shards: ShardSet) -> list[Problem]:
    """Verifies and counts a shard, or the lookup table if the number is None."""
    if number is None:
        return verify_table(shards)
    problems, info = verify_shard(shards, number), shards.manifest.shards[number]
    counter.add(info.bytes, info.seconds)
    return problems


def verify_table(shards: ShardSet) -> list[Problem]:
    """Returns the problem of the lookup table of a set, if there is one; the means themselves are not checked."""
    expected = lookup.table_shape(shards.manifest)
    try:
        with shards.open(lookup.NAME) as file:
            table = read_npy(file.read())
    except FileNotFoundError:
        problem = "missing"
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {error}"
    else:
        if (table.dtype, table.shape) != (np.float32, expected):
            problem = f"{table.dtype} of shape {table.shape}, expected float32 of {expected}"
        elif np.isfinite(table).all():
            return []
        else:
            problem = "not finite"
    return [Problem(None, lookup.NAME, "", problem)]


def verify_shard(shards: ShardSet, number: int) -> list[Problem]:
    """Reads a shard completely; returns its problems, and those of every sample that training would skip."""
    info, problems = shards.manifest.shards[number], list[Problem]()

    def add(key: str, description: str) -> None:
        problems.append(Problem(number, info.name, key, description))

    try:
        rows = shards.read_index(number)
        digest = _digest(shards, info)
    except (OSError, ValueError) as error:
        add("", f"cannot be read: {error}")
        return problems
    if digest != info.digest:
        add("", f"digest {digest[:12]}, the manifest has {info.digest[:12]}")
    if (tokens := sum(row.tokens for row in rows)) != info.tokens:
        add("", f"{tokens} tokens in the index, the manifest has {info.tokens}")
    found: Counter[str] = Counter()
    for raw in shards.read_samples(number):
        found[raw["__key__"]] += 1
        if problem := _sample_problem(shards, raw):
            add(raw["__key__"], problem)
    for key in (row.key for row in rows if not found[row.key]):
        add(key, "damaged: its bytes do not match the checksum in the index")
    return problems


def _digest(shards: ShardSet, info: ShardInfo) -> str:
    with shards.open(info.name) as file:
        return file_digest(file)  # type: ignore[arg-type]


def _sample_problem(shards: ShardSet, raw: RawSample) -> str | None:
    """Returns why training would skip a sample, or None."""
    try:
        shards.decode(raw, shards.manifest.x_vector_width)
    except BadSample as error:
        return str(error)
    return None


def _undamaged_samples(shards: ShardSet, number: int) -> Iterator[RawSample]:
    """Yields the samples whose bytes are proven by the index, or else by the digest of the tar."""
    info = shards.manifest.shards[number]
    tar, index = Path(shards.folder, info.name), Path(shards.folder, info.index_name)
    try:
        # Not as many as in the manifest: an interrupted repair may have rewritten this shard already.
        rows = parse_index(index.read_bytes(), None, max(info.bytes, tar.stat().st_size))
    except (OSError, ValueError) as error:
        if tar.is_file() and _digest(shards, info) == info.digest:
            yield from tarfile_samples(iter([{"url": str(tar)}]))  # type: ignore[misc]
        else:
            log.warning("%s is dropped, because neither index nor digest proves its content: %s", info.name, error)
    else:
        yield from shards.read_samples(number, rows)


def _skipped_at_build(folder: Path, info: ShardInfo) -> dict[str, int]:
    """Returns the counts of clips that were skipped when a shard was built; empty if its index is unreadable."""
    try:
        return dict(parse_json((folder / info.index_name).read_bytes())["skipped"])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _rewrite_shard(shards: ShardSet, number: int) -> ShardInfo:
    """Writes a shard again without its broken samples."""
    folder, manifest, info = Path(shards.folder), shards.manifest, shards.manifest.shards[number]
    skipped = _skipped_at_build(folder, info)
    with ShardWriter(folder, Path(info.name).stem) as writer:
        keys = set[str]()
        for raw in _undamaged_samples(shards, number):
            key = raw["__key__"]
            if key in keys or not is_safe_key(key):
                log.warning("%s in %s is removed: its key is not safe, or not its alone", key, info.name)
            elif not _sample_problem(shards, raw):
                keys.add(key)
                (suffix, audio), fields = find_audio(raw), parse_json(raw["json"])
                tokens = read_tokens(raw["tokens.npy"], manifest.tokenizer.vocabulary)
                clip = CorpusClip(key, suffix, audio, fields)
                writer.add(Sample(clip, tokens, raw.get("speaker.npy", b""), fields["duration"]))
        return writer.finish(skipped)


def repair(shards: ShardSet, numbers: Iterable[int]) -> int:
    """Writes shards again without their broken samples, then the manifest, and then the lookup table.

    Args:
        shards: A set in a local folder.
        numbers: Numbers of the shards; if empty, only the lookup table is made again.

    Returns:
        Number of samples that were removed.

    Raises:
        ValueError: if the set is remote, or no sample would be left.
    """
    folder, manifest = Path(shards.folder), shards.manifest
    if not folder.is_dir():
        raise ValueError(f"{shards.name} is not a local folder: only a set in a local folder can be repaired")
    infos = list(manifest.shards)
    # The table includes samples that will be removed: an interrupted repair leaves none rather than a wrong one.
    (folder / lookup.NAME).unlink(missing_ok=True)
    for number in numbers:
        infos[number] = _rewrite_shard(shards, number)
    left = tuple(info for info in infos if info.samples)
    if not left:
        raise ValueError(f"{folder}: no sample is undamaged: build the set again")
    write_atomically(folder / "manifest.json", replace(manifest, shards=left).as_json())
    for info in infos:
        if not info.samples:  # no longer in the manifest
            for name in (info.name, info.index_name):
                (folder / name).unlink(missing_ok=True)
    write_atomically(folder / lookup.NAME, npy_bytes(lookup.mean_token_mels(ShardSet(folder))))
    return shards.samples - sum(info.samples for info in left)
