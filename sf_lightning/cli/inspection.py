"""Shows the content of a shard set: a summary line, tables, and a few clips for listening. Changes nothing."""

from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sf_lightning.cli.options import require_positive
from sf_lightning.data.held_out import clip_names, select_samples
from sf_lightning.data.sample import BadSample, find_audio, read_tokens
from sf_lightning.data.shards import Manifest, ShardSet
from sf_lightning.files.atomic import write_atomically
from sf_lightning.files.text import file_name, printable, redacted
from sf_lightning.flow.noise import require_seed

MAX_ROWS = 20
"""Number of shards in the table of `sf-shards inspect`."""


def describe(folder: Path | str, manifest: Manifest) -> None:
    """Prints a summary of a set in one line."""
    seconds = sum(shard.seconds for shard in manifest.shards)
    skipped = ", ".join(f"{count} {cause}" for cause, count in manifest.skipped.items())
    spec = manifest.tokenizer
    length = f"{seconds / 60:.1f} minutes" if seconds < 36000 else f"{seconds / 3600:.1f} hours"
    line = (
        f"{redacted(folder)}: {sum(shard.samples for shard in manifest.shards)} clips, {length}, "
        f"{len(manifest.shards)} shards, {spec.name} tokens with {spec.vocabulary} codes ({spec.digest})"
        + (f"; x-vectors of {manifest.x_vectors}" if manifest.x_vectors else "")
        + (f"; skipped: {skipped}" if skipped else "")
    )
    print(printable(line))


def sample(shards: str, out: str, count: int = 5, seed: int = 0) -> None:
    """Copies a few random clips of a set to a folder, for listening: their audio and their JSON.

    Args:
        shards: Shard set: a folder, URL or `pipe:` command.
        out: Folder to write them to.
        count: Number of clips.
        seed: Seed of the random choice.
    """
    require_positive(count=count)
    require_seed("--seed", seed)
    source, folder = ShardSet(shards), Path(out)
    drawn = np.random.default_rng(seed).choice(source.samples, min(count, source.samples), replace=False).tolist()
    selected = select_samples(source, drawn)  # of other shards neither tar nor index is downloaded
    folder.mkdir(parents=True, exist_ok=True)
    for number, names in clip_names(source, selected).items():
        rows = source.read_index(number)
        chosen = dict(zip((rows[i].key for i in selected[number]), names, strict=True))
        for raw in source.read_samples(number, [row for row in rows if row.key in chosen]):
            try:
                suffix, audio = find_audio(raw)
            except BadSample as error:
                print(printable(f"skipped {raw['__key__']}: {error}"))
                continue
            name = file_name(chosen[raw["__key__"]])
            for ending, data in ((suffix, audio), ("json", raw.get("json", b"{}"))):
                write_atomically(folder / f"{name}.{ending}", data)
            print(printable(folder / f"{name}.{suffix}"))


def inspect(shards: str, read: int = 4) -> None:
    """Shows shards, clip lengths, languages, speakers and used codes of a set.

    Args:
        shards: Shard set: a folder, URL or `pipe:` command.
        read: Number of shards whose tokens are counted.
    """
    require_positive(read=read)
    source = ShardSet(shards)
    manifest, console = source.manifest, Console()
    describe(shards, manifest)
    table = Table("shard", "clips", "tokens", "minutes", "MB", "digest")
    for shard in manifest.shards[:MAX_ROWS]:
        minutes, size = f"{shard.seconds / 60:.1f}", f"{shard.bytes / 1e6:.1f}"
        table.add_row(
            shard.name, str(shard.samples), str(shard.tokens), minutes, size, escape(printable(shard.digest[:12]))
        )
    console.print(table)
    if len(manifest.shards) > MAX_ROWS:
        print(f"and {len(manifest.shards) - MAX_ROWS} more")
    rows = [row for number in range(len(manifest.shards)) for row in source.read_index(number)]
    rate = manifest.mel.frame_rate / manifest.tokenizer.frames_per_token
    seconds = np.array([row.tokens for row in rows]) / rate
    counts, edges = np.histogram(seconds, bins=min(10, max(1, len(set(seconds.tolist())))))
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        console.print(f"{low:6.1f} to {high:5.1f} s {count:8d} {'#' * round(40 * count / counts.max())}")
    languages = Counter(row.language or "unknown" for row in rows)
    print(printable("languages: " + ", ".join(f"{name} {count}" for name, count in languages.most_common())))
    speakers = Counter(row.speaker for row in rows)
    most = ", ".join(f"{name} {count}" for name, count in speakers.most_common(3))
    print(printable(f"speakers: {len(speakers)}, most clips: {most}"))
    used = np.zeros(manifest.tokenizer.vocabulary, np.int64)
    chosen = range(len(manifest.shards))[:: max(1, len(manifest.shards) // read)][:read]
    for number in chosen:
        for raw in source.read_samples(number):
            with suppress(BadSample):  # which `sf-shards verify` names
                np.add.at(used, read_tokens(raw.get("tokens.npy", b""), len(used)), 1)
    share = used[used > 0] / max(1, used.sum())
    print(
        f"tokens in {len(chosen)} of {len(manifest.shards)} shards: {np.count_nonzero(used)} of {len(used)} "
        f"codes used, perplexity {np.exp(-(share * np.log(share)).sum()):.0f}, "
        f"largest share {share.max(initial=0):.1%}"
    )
