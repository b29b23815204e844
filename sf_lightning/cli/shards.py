"""`sf-shards`: make shard sets, and look into them."""

import sys
from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from sf_lightning.audio.mel import MelConfig
from sf_lightning.cli.errors import one_line_errors
from sf_lightning.data.shards import Manifest, ShardSet
from sf_lightning.data.writer import build as build_set
from sf_lightning.data.writer import find_audio, fit_tokenizer
from sf_lightning.tokens.base import load_tokenizer


def build(
    audio: str,
    out: str,
    tokenizer: str | None = None,
    vocabulary: int | None = None,
    shard_samples: int = 100,
    x_vectors: str = "",
    x_vector_width: int = 192,
) -> None:
    """Turns a folder of audio into a shard set with tokens; folders name speakers.

    Without --tokenizer, k-means tokens are used: those fitted before and saved beside the set, or new ones,
    fitted on this audio. So build the training set first, and its validation set beside it.

    Args:
        audio: Folder of wav, flac, mp3, ogg or opus files of any rate, searched through.
        out: Folder to make; it must not be there yet.
        tokenizer: File of a tokenizer, such as one that an earlier build has saved.
        vocabulary: Codes of k-means tokens, by default 1024.
        shard_samples: Clips of a shard.
        x_vectors: Name of the encoder whose embeddings lie beside the audio (`clip.speaker.npy` beside
            `clip.wav`); by default there are none.
        x_vector_width: Their width.
    """
    target, mel = Path(out), MelConfig()
    if target.exists():
        raise FileExistsError(f"{target} is there already: delete it or give another --out")
    sources = find_audio(Path(audio))
    codes = vocabulary or 1024
    beside = target.parent / f"kmeans-{codes}.npz"
    if tokenizer is not None:
        made = load_tokenizer(Path(tokenizer))
        if vocabulary not in (None, made.spec.vocabulary):
            raise ValueError(
                f"--vocabulary {vocabulary}, but --tokenizer {tokenizer} has {made.spec.vocabulary} codes: "
                "leave one of them out"
            )
    elif beside.is_file():
        made = load_tokenizer(beside)
        print(f"tokens: {beside}, fitted before (delete it to fit anew)")
    else:
        fitted = fit_tokenizer(sources, codes, mel)
        fitted.save(beside)
        made = fitted
        print(f"tokens: {codes} k-means codes fitted on {audio}, saved in {beside}")
    if x_vectors and x_vector_width < 1:
        raise ValueError(f"--x_vector_width is {x_vector_width}: wanted 1 or more")
    stored = (x_vectors, x_vector_width if x_vectors else 0)
    _describe(target, build_set(sources, target, made, mel, shard_samples, stored))


def demo(out: str = "shards/demo", minutes: float = 24.0, vocabulary: int = 1024) -> None:
    """Synthesises a small corpus in English and Mandarin and builds shard sets of it.

    Args:
        out: Folder to make; it gets `corpus`, `train` and `dev`. What is there already is kept.
        minutes: Speech to synthesise for training.
        vocabulary: Codes of k-means tokens.
    """
    from sf_lightning.data.demo import synthesise

    folder = Path(out)
    synthesise(folder / "corpus", minutes=minutes)
    for split in ("train", "dev"):
        if (folder / split).exists():
            _describe(folder / split, ShardSet(folder / split).manifest)
        else:
            build(str(folder / "corpus" / split), str(folder / split), vocabulary=vocabulary)


def inspect(shards: str) -> None:
    """Shows what a shard set holds.

    Args:
        shards: Folder of the set.
    """
    manifest = ShardSet(Path(shards)).manifest
    _describe(Path(shards), manifest)
    table = Table("shard", "clips", "tokens", "minutes", "MB", "digest")
    for shard in manifest.shards:
        table.add_row(
            shard.name,
            str(shard.samples),
            str(shard.tokens),
            f"{shard.seconds / 60:.1f}",
            f"{shard.bytes / 1e6:.1f}",
            shard.digest[:12],
        )
    Console().print(table)


def _describe(folder: Path, manifest: Manifest) -> None:
    seconds = sum(shard.seconds for shard in manifest.shards)
    skipped = ", ".join(f"{count} {cause}" for cause, count in manifest.skipped.items())
    spec = manifest.tokenizer
    print(
        f"{folder}: {sum(shard.samples for shard in manifest.shards)} clips, {seconds / 60:.1f} minutes, "
        f"{len(manifest.shards)} shards, {spec.name} tokens of {spec.vocabulary} codes ({spec.digest})"
        + (f"; skipped: {skipped}" if skipped else "")
    )


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    args = sys.argv[1:] if args is None else args
    auto_cli([build, demo, inspect], args=args, as_positional=False, exit_on_error=False)


if __name__ == "__main__":
    main()
