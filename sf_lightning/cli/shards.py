"""`sf-shards`: make shard sets, check them, and look into them."""

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
from sf_lightning.data.corpus import Filters, find_parts
from sf_lightning.data.provenance import load_existing
from sf_lightning.data.shards import ShardSet
from sf_lightning.data.verify import repair as repair_set
from sf_lightning.data.verify import verify as verify_set
from sf_lightning.tokens.base import TokenizerSpec


def build(
    audio: str,
    out: str,
    tokenizer: str | None = None,
    vocabulary: int | None = None,
    tokens_by: str | None = None,
    speaker_encoder: str | None = None,
    x_vectors: str = "",
    x_vector_width: int | None = None,
    shard_samples: int = 100,
    languages: list[str] | str | None = None,
    min_seconds: float = 0.0,
    max_seconds: float = 60.0,
    min_dnsmos: float | None = None,
    blocked_speakers: str | None = None,
    slice: str = "1/1",
    processes: int = 1,
    at_once: int = 16,
    device: str = "cpu",
) -> None:
    """Turns a corpus into a shard set with tokens; a build that was stopped goes on when it is started again.

    Without --tokenizer, k-means tokens are used: those fitted before and saved beside the set, or new ones,
    fitted on this audio. So build the training set first, and its validation set beside it.

    Args:
        audio: Folder of wav, flac, mp3, ogg or opus files of any rate, searched through; or of tars, as
            Emilia and Emilia-YODAS are distributed; or one tar.
        out: Folder to make; if it is there already, it is left as it is, and must be of the same build.
        tokenizer: File of a tokenizer: `.npz` of k-means, `.onnx` or `.pt` of the S3 tokenizer; or
            "precomputed", if tokens lie beside the audio (`clip.tokens.npy` beside `clip.wav`).
        vocabulary: Codes of k-means tokens, by default 1024; of precomputed ones it must be given.
        tokens_by: What made precomputed tokens, by default "precomputed"; the model's `tokenizer` says the same.
        speaker_encoder: SpeechBrain ECAPA-TDNN that makes an x-vector of each clip: its folder, or its name on
            the hub.
        x_vectors: Name of the encoder whose embeddings lie beside the audio (`clip.speaker.npy` beside
            `clip.wav`); by default there are none.
        x_vector_width: Their width, by default 192.
        shard_samples: Clips of a shard.
        languages: Languages wanted, such as [en, zh] or en; by default all.
        min_seconds: Shortest clip.
        max_seconds: Longest clip.
        min_dnsmos: Least predicted quality, as Emilia has it.
        blocked_speakers: File of speakers that are left out, one to a line.
        slice: Slice of the corpus that this job builds, such as 3/64; the last job writes the manifest.
        processes: Processes that work side by side.
        at_once: Clips that go through tokenizer and speaker encoder together.
        device: Where those two run, such as "cpu" or "cuda".
    """
    target, mel, (number, of) = Path(out), MelConfig(), parse_slice(slice)
    made = load_existing(target)
    require_positive(
        shard_samples=shard_samples,
        processes=processes,
        at_once=at_once,
        vocabulary=vocabulary,
        x_vector_width=x_vector_width,
    )
    for name, is_given, wanted, has in (
        ("tokens_by", tokens_by is not None, "--tokenizer=precomputed", tokenizer == "precomputed"),
        ("x_vector_width", x_vector_width is not None, "--x_vectors", bool(x_vectors)),
        ("device", device != "cpu", "S3 tokens or --speaker_encoder", runs_on_device(tokenizer) or speaker_encoder),
    ):
        if is_given and not has:
            raise ValueError(f"--{name} says something only beside {wanted}: give that too, or leave it out")
    require_device(device)
    # Before any tokenizer is fitted: that takes a while, and a mistake here is said at once.
    filters = Filters(
        split_list(languages),
        min_seconds,
        max_seconds,
        min_dnsmos,
        read_names(blocked_speakers, "--blocked_speakers"),
    )
    parts = find_parts(Path(audio), shard_samples)
    spec = TokenizerSpec(**made["tokenizer"]) if made else None
    recipe = BuildConfig(
        choose_tokenizer(tokenizer, vocabulary, tokens_by or "precomputed", parts, target, mel, of, device, spec),
        mel,
        choose_speaker(speaker_encoder, x_vectors, x_vector_width or 192, device),
        filters,
        shard_samples,
        at_once,
    )
    manifest = build_set(parts, target, recipe, (number, of), processes)
    if made:
        print(f"{target} is there already, made by this same build: nothing was done")
    if manifest is None:
        print(f"{target}: slice {slice} is done; the set is complete when all slices are")
    else:
        describe(target, manifest)


def fit(audio: str, out: str, vocabulary: int = 1024) -> None:
    """Fits k-means tokens on a corpus, on at most two hours spread over it.

    Args:
        audio: Folder of audio files or of tars.
        out: File to write, a `.npz`.
        vocabulary: Codes.
    """
    require_positive(vocabulary=vocabulary)
    if Path(out).suffix != ".npz":
        raise ValueError(f"--out {out}: wanted a name that ends in .npz")
    if Path(out).exists():
        raise FileExistsError(
            f"{out} is there already, and sets may have been built with it: delete it to fit anew, or give "
            "another --out"
        )
    fit_tokenizer(find_parts(Path(audio), 100), vocabulary, MelConfig()).save(Path(out))
    print(f"{out}: {vocabulary} k-means codes")


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
            describe(folder / split, ShardSet(folder / split).manifest)
        else:
            build(str(folder / "corpus" / split), str(folder / split), vocabulary=vocabulary)


def verify(shards: str, repair: bool = False, slice: str = "1/1", processes: int = 1) -> None:
    """Reads a whole set and checks it: digests, counts, every sample's bytes, audio and tokens, the look-up table.

    Args:
        shards: Folder of the set, or its place elsewhere.
        repair: Write shards with broken samples again without them, and the look-up table anew; not in parts, for
            there is one manifest.
        slice: Slice of the shards that this job reads, such as 3/64.
        processes: Processes that read side by side.
    """
    (number, of), held = parse_slice(slice), ShardSet(shards)
    require_positive(processes=processes)
    if repair and of > 1:
        raise ValueError(
            f"--repair with --slice {slice}: jobs would undo each other's manifest: verify in slices, then repair "
            "in one job without --slice (--processes makes it quicker)"
        )
    mine = held.manifest.shards[number - 1 :: of]
    problems = verify_set(held, (number, of), processes)
    broken = {problem.shard for problem in problems if problem.shard is not None}
    name = shards if of == 1 else f"{shards}, slice {slice}"
    if problems and repair:
        lost = repair_set(held, sorted(broken))
        print(f"{shards}: repaired; {lost} samples are gone")
    elif broken:
        raise ValueError(
            f"{name}: {len(problems)} problems, in {len(broken)} of {len(mine)} shards: training would skip these "
            "samples; --repair=true removes them"
        )
    elif problems:
        raise ValueError(f"{name}: the look-up table is not as it should be; --repair=true makes it again")
    else:
        print(f"{name}: {sum(info.samples for info in mine)} samples in {len(mine)} shards, all as they should be")


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
