"""`sf-shards`: make shard sets, check them, and look into them."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from sf_lightning.audio.mel import MelConfig
from sf_lightning.cli.encoders import choose_speaker, choose_tokenizer, runs_on_device
from sf_lightning.cli.errors import one_line_errors
from sf_lightning.data.build import build as build_set
from sf_lightning.data.build import fit_tokenizer
from sf_lightning.data.corpus import Filters, clean_key, find_units
from sf_lightning.data.provenance import made_before
from sf_lightning.data.recipe import Recipe
from sf_lightning.data.sample import audio_of, read_tokens
from sf_lightning.data.shards import Manifest, ShardSet
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
    part: str = "1/1",
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
        part: Which part of the work this job does, such as 3/64; the last one to end writes the manifest.
        processes: Processes that work side by side.
        at_once: Clips that go through tokenizer and speaker encoder together.
        device: Where those two run, such as "cpu" or "cuda".
    """
    target, mel, (number, of) = Path(out), MelConfig(), _part(part)
    made = made_before(target)
    _require_positive(
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
    # Before any tokenizer is fitted: that takes a while, and a mistake here is said at once.
    filters = Filters(_listed(languages), min_seconds, max_seconds, min_dnsmos, _names_in(blocked_speakers))
    units = find_units(Path(audio), shard_samples)
    spec = TokenizerSpec(**made["tokenizer"]) if made else None
    recipe = Recipe(
        choose_tokenizer(tokenizer, vocabulary, tokens_by or "precomputed", units, target, mel, of, device, spec),
        mel,
        choose_speaker(speaker_encoder, x_vectors, x_vector_width or 192, device),
        filters,
        shard_samples,
        at_once,
    )
    manifest = build_set(units, target, recipe, (number, of), processes)
    if made:
        print(f"{target} is there already, made by this same build: nothing was done")
    if manifest is None:
        print(f"{target}: part {part} is done; the set is whole when all parts are")
    else:
        _describe(target, manifest)


def _listed(names: list[str] | str | None) -> tuple[str, ...]:
    """A list that was given as one, or as words with commas between them."""
    given = names.split(",") if isinstance(names, str) else names or []
    return tuple(name.strip() for name in given if name.strip())


def _names_in(path: str | None) -> frozenset[str]:
    """Reads the speakers that are left out."""
    if path is None:
        return frozenset()
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}: give speakers, one to a line, with --blocked_speakers")
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--blocked_speakers {path}: wanted text in UTF-8, one speaker to a line ({error})"
        ) from error
    return frozenset(line.strip() for line in lines if line.strip())


def _require_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}: wanted 1 or more")


def _part(text: str) -> tuple[int, int]:
    try:
        number, of = (int(each) for each in text.split("/"))
    except ValueError:
        raise ValueError(f"--part is {text!r}: wanted two numbers, such as 3/64") from None
    if of < 1:
        raise ValueError(f"--part is {text}: wanted at least one part, such as 1/1")
    if not 1 <= number <= of:
        raise ValueError(f"--part is {text}: wanted 1/{of} to {of}/{of}")
    return number, of


def fit(audio: str, out: str, vocabulary: int = 1024) -> None:
    """Fits k-means tokens on a corpus, on at most two hours spread over it.

    Args:
        audio: Folder of audio files or of tars.
        out: File to write, a `.npz`.
        vocabulary: Codes.
    """
    _require_positive(vocabulary=vocabulary)
    if Path(out).suffix != ".npz":
        raise ValueError(f"--out {out}: wanted a name that ends in .npz")
    fit_tokenizer(find_units(Path(audio), 100), vocabulary, MelConfig()).save(Path(out))
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
            _describe(folder / split, ShardSet(folder / split).manifest)
        else:
            build(str(folder / "corpus" / split), str(folder / split), vocabulary=vocabulary)


def verify(shards: str, repair: bool = False, part: str = "1/1", processes: int = 1) -> None:
    """Reads a whole set and checks it: digests, counts, every sample's bytes, audio and tokens, the look-up table.

    Args:
        shards: Folder of the set, or its place elsewhere.
        repair: Write shards with broken samples again without them, and the look-up table anew; not in parts, for
            there is one manifest.
        part: Which part of the shards this job reads, such as 3/64.
        processes: Processes that read side by side.
    """
    (number, of), held = _part(part), ShardSet(shards)
    _require_positive(processes=processes)
    if repair and of > 1:
        raise ValueError(
            f"--repair with --part {part}: jobs would undo each other's manifest: verify in parts, then repair in "
            "one job without --part (--processes makes it quicker)"
        )
    mine = held.manifest.shards[number - 1 :: of]
    problems = verify_set(held, (number, of), processes)
    broken = {problem.shard for problem in problems if problem.shard is not None}
    name = shards if of == 1 else f"{shards}, part {part}"
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


def sample(shards: str, out: str, count: int = 5, seed: int = 0) -> None:
    """Takes a few clips out of a set, to hear: their audio as it lies there, and their JSON.

    Args:
        shards: Folder of the set, or its place elsewhere.
        out: Folder to write them to.
        count: How many, drawn evenly from all.
        seed: Of the draw.
    """
    _require_positive(count=count)
    held, folder = ShardSet(shards), Path(out)
    drawn = set(np.random.default_rng(seed).permutation(held.samples)[:count].tolist())
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for number, info in enumerate(held.manifest.shards):
        wanted = {row.key for i, row in enumerate(held.index(number), start) if i in drawn}
        start += info.samples
        for raw in held.read(number) if wanted else ():
            if raw["__key__"] in wanted:
                suffix, audio = audio_of(raw)
                key = clean_key(raw["__key__"])  # a set made by others may have keys that leave the folder
                for name, data in ((suffix, audio), ("json", raw.get("json", b"{}"))):
                    (folder / f"{key}.{name}").write_bytes(data)
                print(folder / f"{key}.{suffix}")


def inspect(shards: str, read: int = 4) -> None:
    """Shows what a shard set holds: its shards, lengths of clips, languages, speakers, and codes that are used.

    Args:
        shards: Folder of the set, or its place elsewhere.
        read: Shards whose tokens are counted.
    """
    held = ShardSet(shards)
    manifest, console = held.manifest, Console()
    _describe(Path(shards), manifest)
    table = Table("shard", "clips", "tokens", "minutes", "MB", "digest")
    for shard in manifest.shards[:20]:
        table.add_row(
            shard.name,
            str(shard.samples),
            str(shard.tokens),
            f"{shard.seconds / 60:.1f}",
            f"{shard.bytes / 1e6:.1f}",
            shard.digest[:12],
        )
    console.print(table)
    if len(manifest.shards) > 20:
        print(f"and {len(manifest.shards) - 20} more")
    rows = [row for number in range(len(manifest.shards)) for row in held.index(number)]
    rate = manifest.mel.frame_rate / manifest.tokenizer.frames_per_token
    seconds = np.array([row.tokens for row in rows]) / rate
    counts, edges = np.histogram(seconds, bins=min(10, max(1, len(set(seconds.tolist())))))
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        console.print(f"{low:6.1f} to {high:5.1f} s {count:8d} {'#' * round(40 * count / counts.max())}")
    languages = Counter(row.language or "not said" for row in rows)
    print("languages: " + ", ".join(f"{name} {count}" for name, count in languages.most_common()))
    speakers = Counter(row.speaker for row in rows)
    most = ", ".join(f"{name} {count}" for name, count in speakers.most_common(3))
    print(f"speakers: {len(speakers)}, most often {most}")
    used = np.zeros(manifest.tokenizer.vocabulary, np.int64)
    chosen = range(len(manifest.shards))[:: max(1, len(manifest.shards) // max(1, read))][:read]
    for number in chosen:
        for raw in held.read(number):
            np.add.at(used, read_tokens(raw["tokens.npy"], len(used)), 1)
    share = used[used > 0] / max(1, used.sum())
    print(
        f"tokens in {len(chosen)} of {len(manifest.shards)} shards: {np.count_nonzero(used)} of {len(used)} "
        f"codes used, perplexity {np.exp(-(share * np.log(share)).sum()):.0f}, largest {share.max(initial=0):.1%}"
    )


def _describe(folder: Path, manifest: Manifest) -> None:
    seconds = sum(shard.seconds for shard in manifest.shards)
    skipped = ", ".join(f"{count} {cause}" for cause, count in manifest.skipped.items())
    spec = manifest.tokenizer
    length = f"{seconds / 60:.1f} minutes" if seconds < 36000 else f"{seconds / 3600:.1f} hours"
    print(
        f"{folder}: {sum(shard.samples for shard in manifest.shards)} clips, {length}, "
        f"{len(manifest.shards)} shards, {spec.name} tokens of {spec.vocabulary} codes ({spec.digest})"
        + (f"; x-vectors of {manifest.x_vectors}" if manifest.x_vectors else "")
        + (f"; left out: {skipped}" if skipped else "")
    )


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    args = sys.argv[1:] if args is None else args
    commands: list[Callable[..., Any] | type] = [build, fit, demo, verify, inspect, sample]
    auto_cli(commands, args=args, as_positional=False, exit_on_error=False)


if __name__ == "__main__":
    main()
