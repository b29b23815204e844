"""`sf-eval`: which decoder, decoded how, is best: tables, a page to hear it on, and a listening test."""

import inspect
import os
import platform
import sys
from pathlib import Path

import torch

from sf_lightning import __version__
from sf_lightning.cli.errors import one_line_errors
from sf_lightning.cli.options import require_device, require_positive
from sf_lightning.cli.parser import command_parser
from sf_lightning.cli.showing import Bar, log_table, show
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.evaluation.clips import Clips, open_clips
from sf_lightning.evaluation.grid import Options, Subject, plan
from sf_lightning.evaluation.listening import (
    items_of,
    keep_ratings,
    opinions,
    read_kept,
    write_opinions,
    write_test,
)
from sf_lightning.evaluation.report import page_of
from sf_lightning.evaluation.results import Identity, Results
from sf_lightning.evaluation.run import Drawing, Settings, digests_of, evaluate
from sf_lightning.evaluation.scores import Scoring
from sf_lightning.evaluation.table import Findings, markdown, tables, write_csv
from sf_lightning.metrics.predicted import judges
from sf_lightning.metrics.scorers import SAMPLE_RATE
from sf_lightning.model.pretrained import Pretrained
from sf_lightning.tokens.load import load_tokenizer
from sf_lightning.training.checkpoint import load_trained


def judge(
    out: str,
    ckpt: list[str] | None = None,
    data: str | None = None,
    layout: list[str] | None = None,
    lookahead: list[int] | None = None,
    nfe: list[int] | None = None,
    guidance: list[float] | None = None,
    vocoder: list[str] | None = None,
    clips: int = 32,
    keep: int = 3,
    tokenizer: str | None = None,
    similarity: str | None = None,
    batch: int = 8,
    device: str = "cpu",
    listening_test: bool = False,
    ratings: list[str] | None = None,
    wandb: bool = True,
) -> None:
    """Decodes held-out clips with checkpoints, streamed and offline, in every combination given, and scores them.

    Writes `report.html` to hear and see, `table.md` and `table.csv`, and logs the table to W&B. What is done stays
    done: the same command goes on where it was stopped, and one with more checkpoints or options adds rows.

    Args:
        out: Folder to write; new, or of an evaluation of the same clips.
        ckpt: Checkpoints of `sf-fit`, of which the averaged weights are used, and folders of `sf-export`.
        data: Clips: a shard set, or a folder of audio with NAME.tokens.npy beside each file.
        layout: Layouts under which the weights are decoded: "own", presets such as "full", or YAML files. By
            default, as with all that follow, what the checkpoint says.
        lookahead: Blocks waited for beyond a chunk.
        nfe: Network evaluations of a chunk, with the checkpoint's own solver.
        guidance: Strengths of guidance.
        vocoder: "own", "griffin_lim", or checkpoints of vocoders as `sf-decode --vocoder` takes them.
        clips: How many, spread evenly over the data.
        keep: Of them, how many are kept as sound and pictures, for the page and the listening test.
        tokenizer: The checkpoints' own, for audio without tokens beside it.
        similarity: SpeechBrain's ECAPA, a folder or a name on the hub, to compare voices with.
        batch: Clips decoded side by side.
        device: Where to decode, such as "cpu" or "cuda".
        listening_test: Write `listening.html` too, a blind test to be sent to listeners.
        ratings: Files that the listening page of this folder saved, to be turned into mean opinion scores.
        wandb: Whether to log the table to W&B; offline unless a key is there.
    """
    given = {name: value for name, value in locals().items() if name not in ("out", "ratings")}
    folder = Path(out)
    if ratings:
        usual = inspect.signature(judge).parameters
        if beside := [f"--{name}" for name, value in given.items() if value != usual[name].default]:
            raise ValueError(f"--ratings belong to a test that is there already: leave {', '.join(beside)} out")
        _take_ratings(folder, ratings)
        return
    if not ckpt or data is None:
        raise ValueError("give checkpoints with --ckpt and clips with --data; or --ratings that listeners sent")
    require_positive(clips=clips, batch=batch)
    require_device(device)
    if keep < 0:
        raise ValueError(f"--keep is {keep}: wanted 0 or more")
    if listening_test and not keep:
        raise ValueError("--listening_test plays the clips that are kept: give --keep 1 or more")
    options = Options(
        tuple(layout or ()), tuple(lookahead or ()), tuple(nfe or ()), tuple(guidance or ()), tuple(vocoder or ())
    )
    held = open_clips(data, load_tokenizer(Path(tokenizer), device) if tokenizer else None)
    subjects = [_subject(path, held) for path in dict.fromkeys(ckpt)]
    groups = plan(subjects, options)
    drawing = Drawing(held, clips)
    # What is wrong with them is said before anything is written.
    alone = {each.clip.key: each.is_own_reference for group in groups for each in drawing.of(group)}
    scoring, voices, facts = _scoring(similarity, device)
    facts |= {
        "data": (data,),
        "device": (_machine(device),),
        "written by": (f"sf-lightning {__version__}",),
        "checkpoint": tuple(f"{each.path}, step {each.description.weights.step}" for each in subjects),
    }
    if any(alone.values()):
        own = f"a crop of the clip itself in {sum(alone.values())} of {len(alone)}, whose speaker has no other"
        facts["voice"] = (own,)
    identity = Identity(data, held.version, clips, voices, tuple(scoring.judges), torch.device(device).type)
    ways = [way for group in groups for way in group.ways]
    results = Results.open(folder, identity, ways, digests_of(groups), facts)
    try:
        with Bar() as bar:
            evaluate(groups, drawing, results, scoring, Settings(keep, batch, device), bar.move)
    finally:
        results.close()
    found = Findings.of(results)
    (folder / "table.md").write_text(markdown(found), encoding="utf-8")
    write_csv(found, folder / "table.csv")
    show(tables(found))
    _write_report(folder, found)
    if wandb:
        log_table(folder, found)
    if listening_test:  # last: another test may be there, or no clip to ask about
        write_test(folder, items_of(found))
        print(f"{'for listeners:':16}{folder / 'listening.html'} (listening-key.json says what is what: keep it)")


def _take_ratings(folder: Path, ratings: list[str]) -> None:
    """Turns what listeners sent into mean opinion scores, beside the test and in its report."""
    kept = keep_ratings(folder, [Path(path) for path in ratings])
    table = write_opinions(folder, opinions(folder, kept), kept)
    show([table])
    print(f"{'opinions:':16}{folder / 'mos.md'}, {folder / 'mos.csv'}")
    _write_report(folder, Findings.of(Results.read(folder)))


def _subject(path: str, held: Clips) -> Subject:
    """Reads a checkpoint, and checks that the clips are for it."""
    if not Path(path).exists():
        raise FileNotFoundError(f"--ckpt: no file or folder {path}")

    trained = load_trained(Path(path))
    digest = trained.digest

    def load() -> Pretrained:
        again = load_trained(Path(path))
        if again.digest != digest:  # the last.ckpt of a training that goes on, for one
            raise ValueError(f"--ckpt {path} changed while it was evaluated: copy it first")
        return again

    subject = Subject(path, trained.description, digest, load)
    requirements = ClipRequirements.from_config(trained.description.model, trained.description.tokenizer)
    if requirements.mel.sample_rate != SAMPLE_RATE:
        raise ValueError(
            f"--ckpt {path} has a mel of {requirements.mel.sample_rate} Hz; scores are defined at {SAMPLE_RATE}"
        )
    try:
        held.require(requirements)
    except ValueError as error:
        raise ValueError(f"--ckpt {path}: {error}") from error
    return subject


def _scoring(similarity: str | None, device: str) -> tuple[Scoring, str, dict[str, tuple[str, ...]]]:
    """What clips are scored with, the name of the speaker encoder, and what there is to say of what is left out."""
    found, lacking = judges()
    left_out = [f"{name.upper()} ({reason})" for name, reason in lacking.items()]
    embed, voices = None, ""
    if similarity is not None:
        from sf_lightning.model.ecapa import PretrainedECAPA  # brings SpeechBrain's loaders along

        if Path(similarity).exists() and not Path(similarity, "hyperparams.yaml").is_file():
            raise FileNotFoundError(
                f"--similarity: no hyperparams.yaml in {similarity}: give a folder of SpeechBrain's"
            )
        encoder = PretrainedECAPA(similarity, device)
        voices = f"{similarity} ({encoder.name})"

        def embed(wave):  # type: ignore[no-untyped-def]
            return encoder.encode([wave])[0]

    else:
        left_out.append("speaker similarity (no --similarity)")
    if left_out:
        print(f"left out: {', '.join(left_out)}", file=sys.stderr)
    return Scoring(embed, found), voices, {"left out": (", ".join(left_out),)} if left_out else {}


def _machine(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{device}, {cores}, {platform.machine()}, torch {torch.__version__}"


def _write_report(folder: Path, found: Findings) -> None:
    kept = read_kept(folder)
    more = [write_opinions(folder, opinions(folder, kept), kept)] if kept else []
    page_of(found, more).write(folder / "report.html")
    print(f"{'hear and see:':16}{folder / 'report.html'}")
    if (folder / "table.md").is_file():
        print(f"{'tables:':16}{folder / 'table.md'}, {folder / 'table.csv'}")


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    lists = ("ckpt", "layout", "lookahead", "nfe", "guidance", "vocoder", "ratings")
    parser = command_parser("sf-eval", judge, lists=lists)
    judge(**vars(parser.parse_args(args)))


if __name__ == "__main__":
    main()
