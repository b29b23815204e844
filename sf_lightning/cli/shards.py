"""`sf-shards`: builds, verifies and inspects shard sets."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from sf_lightning import __version__
from sf_lightning.audio.mel import MelConfig
from sf_lightning.cli.encoders import choose_speaker, choose_tokenizer, runs_on_device
from sf_lightning.cli.errors import one_line_errors
from sf_lightning.cli.inspection import describe, inspect, sample
from sf_lightning.cli.options import parse_slice, read_names, require_device, require_positive, split_list
from sf_lightning.cli.parser import CommandParser
from sf_lightning.data.build import build as build_set
from sf_lightning.data.build import fit_tokenizer
from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import find_parts, make_parts
from sf_lightning.data.filters import Filters
from sf_lightning.data.provenance import load_existing
from sf_lightning.data.scan import scan
from sf_lightning.data.shards import ShardSet
from sf_lightning.data.verify import repair as repair_set
from sf_lightning.data.verify import verify as verify_set
from sf_lightning.files.text import printable, redacted
from sf_lightning.tokens.base import TokenizerSpec


def build(
    audio: str,
    out: str,
    tokenizer: str | None = None,
    vocabulary: int | None = None,
    tokenizer_name: str | None = None,
    speaker_encoder: str | None = None,
    x_vectors: str = "",
    x_vector_width: int | None = None,
    shard_samples: int = 100,
    languages: list[str | bool] | str | None = None,
    min_seconds: float = 0.0,
    max_seconds: float = 60.0,
    min_dnsmos: float | None = None,
    blocked_speakers: str | None = None,
    slice: str = "1/1",
    processes: int = 1,
    batch_size: int = 16,
    device: str = "cpu",
) -> None:
    """Builds a shard set with tokens from a corpus; the same command resumes an interrupted build.

    Without --tokenizer, k-means tokens are used: of the tokenizer file beside the set, if there is one, or else of
    a new one, fitted on this audio. Build the training set first, and its validation set beside it.

    Args:
        audio: Folder of wav, flac, mp3, ogg, opus or aiff files of any sample rate, searched recursively; or folder
            of tars in the format of Emilia and Emilia-YODAS; or one tar.
        out: Folder of the set. If it exists, it must have been built from the same corpus with the same options: an
            interrupted build is resumed, a complete set stays as it is.
        tokenizer: Tokenizer file: `.npz` for k-means, `.onnx` or `.pt` for the S3 tokenizer; or "precomputed" for
            tokens that are stored beside the audio (`clip.tokens.npy` beside `clip.wav`); by default k-means.
        vocabulary: Number of codes of k-means, 1024 by default; required for precomputed tokens.
        tokenizer_name: Name of the tokenizer of precomputed tokens, which must equal the model's `tokenizer`;
            "precomputed" by default.
        speaker_encoder: SpeechBrain ECAPA-TDNN that computes an x-vector of each clip: folder, or name on the
            Hugging Face hub.
        x_vectors: Name of the speaker encoder of x-vectors that are stored beside the audio (`clip.speaker.npy`
            beside `clip.wav`); none by default.
        x_vector_width: Width of these x-vectors, 192 by default.
        shard_samples: Clips per shard.
        languages: Accepted languages, such as [en, zh] or en; all by default.
        min_seconds: Shortest accepted clip, in seconds.
        max_seconds: Longest accepted clip, in seconds.
        min_dnsmos: Lowest accepted DNSMOS (predicted quality, a field of Emilia's metadata).
        blocked_speakers: Text file of rejected speakers, one per line.
        slice: Slice of the corpus that this job builds, such as 3/64: the third of 64 jobs. The job that ends last
            writes the manifest.
        processes: Number of processes.
        batch_size: Clips that tokenizer and speaker encoder process together.
        device: Device of the S3 tokenizer and the speaker encoder, such as "cpu" or "cuda".
    """
    target, job_slice = Path(out), parse_slice(slice)
    existing = load_existing(target)
    require_positive(
        shard_samples=shard_samples,
        processes=processes,
        batch_size=batch_size,
        vocabulary=vocabulary,
        x_vector_width=x_vector_width,
    )
    uses_device = runs_on_device(tokenizer) or speaker_encoder is not None
    for option, is_given, required, is_met in (
        ("tokenizer_name", tokenizer_name is not None, "--tokenizer=precomputed", tokenizer == "precomputed"),
        ("x_vector_width", x_vector_width is not None, "--x_vectors", bool(x_vectors)),
        ("device", device != "cpu", "an S3 --tokenizer or --speaker_encoder", uses_device),
    ):
        if is_given and not is_met:
            raise ValueError(f"--{option} requires {required}: give that too, or leave --{option} out")
    require_device(device)
    # Before a tokenizer is fitted, which takes a while.
    blocked = read_names(blocked_speakers, "--blocked_speakers")
    filters = Filters(split_list(languages), min_seconds, max_seconds, min_dnsmos, blocked)
    found = scan(Path(audio))
    for line in found.lines:
        print(printable(line), file=sys.stderr)
    parts = make_parts(found, shard_samples)
    spec = TokenizerSpec(**existing["tokenizer"]) if existing else None
    name = tokenizer_name or "precomputed"
    config = BuildConfig(
        choose_tokenizer(tokenizer, vocabulary, name, device, parts, target, job_slice[1], spec),
        MelConfig(),
        choose_speaker(speaker_encoder, x_vectors, x_vector_width or 192, device),
        filters,
        shard_samples,
        batch_size,
    )
    manifest = build_set(parts, target, config, job_slice, processes, found.counts)
    if existing:
        print(f"{target} exists already, from this same build: nothing to do")
    if manifest is None:
        print(f"{target}: slice {slice} is done; the set is complete when all slices are")
    else:
        describe(target, manifest)


def fit(audio: str, out: str, vocabulary: int = 1024) -> None:
    """Fits a k-means tokenizer on at most two hours of a corpus, spread over its parts.

    Args:
        audio: Folder of audio files or of tars, as for `sf-shards build`.
        out: Tokenizer file to write, `.npz`.
        vocabulary: Number of codes.
    """
    require_positive(vocabulary=vocabulary)
    if Path(out).suffix != ".npz":
        raise ValueError(f"--out {out}: expected a file name with suffix .npz")
    if Path(out).exists():
        raise FileExistsError(
            f"{out} exists already, and sets may have been built with it: delete it to fit a new one, or give "
            "another --out"
        )
    fit_tokenizer(find_parts(Path(audio), 100), vocabulary, MelConfig()).save(Path(out))
    print(f"{out}: {vocabulary} k-means codes")


def demo(out: str = "shards/demo", minutes: float = 24.0, vocabulary: int = 1024) -> None:
    """Synthesizes a small corpus in English and Mandarin and builds shard sets from it.

    Args:
        out: Folder that gets `corpus`, `train` and `dev`; those that exist are kept.
        minutes: Minutes of speech in the training set.
        vocabulary: Number of codes of the k-means tokenizer.
    """
    from sf_lightning.data.demo import synthesize

    folder = Path(out)
    synthesize(folder / "corpus", minutes=minutes)
    for split in ("train", "dev"):
        if (folder / split).exists():
            describe(folder / split, ShardSet(folder / split).manifest)
        else:
            build(str(folder / "corpus" / split), str(folder / split), vocabulary=vocabulary)


def verify(shards: str, repair: bool = False, slice: str = "1/1", processes: int = 1) -> None:
    """Reads a set and checks digests, counts, the lookup table, and bytes, audio and tokens of every sample.

    Args:
        shards: Shard set: a folder, URL or `pipe:` command, as for `--data.train` of `sf-fit`.
        repair: Whether to write damaged shards again without their broken samples, and the lookup table; not with
            --slice, because the set has only one manifest.
        slice: Slice of the shards that this job reads, such as 3/64.
        processes: Number of processes.
    """
    (number, count), source = parse_slice(slice), ShardSet(shards)
    require_positive(processes=processes)
    if repair and count > 1:
        raise ValueError(
            f"--repair cannot be combined with --slice {slice}, because jobs would overwrite each other's "
            "manifest: verify in slices, then repair in one job (--processes makes it faster)"
        )
    infos = source.manifest.shards[number - 1 :: count]
    problems = verify_set(source, (number, count), processes)
    broken = {problem.shard for problem in problems if problem.shard is not None}
    name = redacted(shards) if count == 1 else f"{redacted(shards)}, slice {slice}"
    if problems and repair:
        removed = repair_set(source, sorted(broken))
        print(f"{name}: repaired, {removed} samples removed")
    elif broken:
        raise ValueError(
            f"{name}: {len(problems)} problems in {len(broken)} of {len(infos)} shards: training would skip these "
            "samples; --repair=true removes them"
        )
    elif problems:
        raise ValueError(f"{name}: the lookup table is missing or wrong: --repair=true makes it again")
    else:
        print(f"{name}: {sum(info.samples for info in infos)} samples in {len(infos)} shards, no problems")


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    args = sys.argv[1:] if args is None else args
    commands: list[Callable[..., Any] | type] = [build, fit, demo, verify, inspect, sample]
    auto_cli(
        commands, args=args, as_positional=False, parser_class=CommandParser, prog="sf-shards", version=__version__
    )


if __name__ == "__main__":
    main()
