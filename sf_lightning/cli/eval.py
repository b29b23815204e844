"""`sf-eval`: compares decoders and decoding settings in tables, on a page with sounds, and in a listening test."""

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
from sf_lightning.cli.showing import ProgressBar, log_table
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.evaluation.clips import ClipSource, open_clips
from sf_lightning.evaluation.listening import (
    add_ratings,
    listening_items,
    read_ratings,
    write_opinions,
    write_test,
)
from sf_lightning.evaluation.report import write_evaluation_report
from sf_lightning.evaluation.results import Identity, Results
from sf_lightning.evaluation.run import evaluate, input_digests
from sf_lightning.evaluation.scores import ClipScorer
from sf_lightning.evaluation.selection import ClipSelection
from sf_lightning.evaluation.systems import Candidate, DecodingGrid, plan_systems
from sf_lightning.evaluation.table import Findings, Table, tables, write_tables
from sf_lightning.evaluation.terminal import print_tables
from sf_lightning.files.text import redacted
from sf_lightning.metrics.predicted import available_predictors
from sf_lightning.metrics.scorers import SAMPLE_RATE
from sf_lightning.model.pretrained import Pretrained
from sf_lightning.streaming.loading import load_pretrained
from sf_lightning.tokens.load import load_tokenizer


def evaluate_checkpoints(
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
    """Decodes held-out clips with each checkpoint and combination of settings, and scores them.

    Writes `report.html` with tables, plots and sounds, `table.md` and `table.csv`, and logs the table to W&B.
    Finished results are kept: the same command resumes an interrupted evaluation, and one with more checkpoints or
    settings adds rows.

    Args:
        out: Folder to write; a new one, or one with an evaluation of the same clips.
        ckpt: Checkpoints of `sf-fit`, evaluated with their averaged weights, folders of `sf-export`, and
            OWNER/NAME[@REVISION] of the Hugging Face hub (HF_TOKEN and HF_HOME set access token and cache).
        data: Clips: a shard set, or a folder of audio with NAME.tokens.npy beside each file; required except with
            `--ratings`.
        layout: Mask layouts to decode with: "own", names of presets such as "full", or YAML files. The
            default of this and the next four options is the checkpoint's own setting.
        lookahead: Look-aheads, in blocks beyond a chunk.
        nfe: Numbers of network evaluations (NFE) of a chunk, with the checkpoint's own solver.
        guidance: Strengths of classifier-free guidance.
        vocoder: Vocoders: "own", "griffin_lim", or checkpoints, as for `sf-decode --vocoder`.
        clips: Number of clips, spread evenly over the data.
        keep: Number of these clips whose sound and pictures are kept for the page and the listening test.
        tokenizer: File of the checkpoints' tokenizer, for audio without tokens beside it.
        similarity: SpeechBrain's ECAPA-TDNN, a folder or a name on the Hugging Face hub, to compute speaker
            similarity.
        batch: Number of clips decoded side by side.
        device: Device that decodes, such as "cpu" or "cuda".
        listening_test: Whether to write `listening.html`, a blind listening test to send to listeners.
        ratings: Rating files that listeners saved from `listening.html`, for mean opinion scores; used with `--out`
            only.
        wandb: Whether to log the table to W&B; offline unless an API key is configured.
    """
    given = {name: value for name, value in locals().items() if name not in ("out", "ratings")}
    folder = Path(out)
    if ratings:
        parameters = inspect.signature(evaluate_checkpoints).parameters
        if extra := [f"--{name}" for name, value in given.items() if value != parameters[name].default]:
            raise ValueError(f"--ratings belong to an existing evaluation: leave {', '.join(extra)} out")
        _add_ratings(folder, ratings)
        return
    if not ckpt or data is None:
        raise ValueError("give checkpoints with --ckpt and clips with --data, or listeners' ratings with --ratings")
    require_positive(clips=clips, batch=batch)
    require_device(device)
    if keep < 0:
        raise ValueError(f"--keep is {keep}: expected 0 or more")
    if listening_test and not keep:
        raise ValueError("--listening_test plays the clips that are kept, and --keep is 0: give --keep 1 or more")
    grid = DecodingGrid(
        tuple(layout or ()), tuple(lookahead or ()), tuple(nfe or ()), tuple(guidance or ()), tuple(vocoder or ())
    )
    source = open_clips(data, load_tokenizer(Path(tokenizer), device) if tokenizer else None)
    candidates = [open_candidate(path, source) for path in dict.fromkeys(ckpt)]
    groups = plan_systems(candidates, grid)
    selection = ClipSelection(source, clips)
    # All clips are read before anything is written, so that errors in them leave no folder behind.
    own = {clip.clip.key: clip.is_own_reference for group in groups for clip in selection.clips(group)}
    scorer, encoder, facts = _make_scorer(similarity, device)
    facts |= {
        "data": (redacted(data),),
        "device": (_describe_machine(device),),
        "written by": (f"sf-lightning {__version__}",),
        "checkpoint": tuple(f"{c.path}, step {c.description.weights.step}" for c in candidates),
    }
    if any(own.values()):
        text = f"cropped from the clip itself for {sum(own.values())} of {len(own)} clips, the speaker's only ones"
        facts["speaker reference"] = (text,)
    identity = Identity(
        redacted(data), source.version, clips, encoder, tuple(scorer.predictors), torch.device(device).type
    )
    systems = [system for group in groups for system in group.systems]
    results = Results.open(folder, identity, systems, input_digests(groups), facts)
    try:
        with ProgressBar() as bar:
            evaluate(groups, selection, results, scorer, bar.update, keep, batch, device)
    finally:
        results.close()
    findings = Findings.from_results(results)
    write_tables(findings, folder)
    print_tables(tables(findings))
    _write_report(folder, findings)
    if wandb:
        log_table(folder, findings)
    if listening_test:  # last, since it fails where another test exists or no clip is suitable
        write_test(folder, listening_items(findings))
        print(f"{'listening test:':16}{folder / 'listening.html'} (do not send listening-key.json, its key)")


def _add_ratings(folder: Path, ratings: list[str]) -> None:
    """Adds listeners' ratings, and writes mean opinion scores and the report."""
    add_ratings(folder, [Path(path) for path in ratings])
    print_tables([_write_report(folder, Findings.from_results(Results.read(folder)))[0]])


def open_candidate(path: str, source: ClipSource) -> Candidate:
    """Reads a checkpoint, and checks that the clips meet its requirements."""
    try:
        trained = load_pretrained(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"--ckpt: {error}") from error
    digest = trained.digest

    def load() -> Pretrained:
        loaded = load_pretrained(path)
        if loaded.digest != digest:  # for example the last.ckpt of a training run that continues
            raise ValueError(f"--ckpt {path} changed during the evaluation: evaluate a copy of it")
        return loaded

    candidate = Candidate(path, trained.description, digest, load)
    description = candidate.description
    requirements = ClipRequirements.from_config(description.model, description.tokenizer)
    if requirements.mel.sample_rate != SAMPLE_RATE:
        raise ValueError(
            f"--ckpt {path} has a mel of {requirements.mel.sample_rate} Hz: scores are defined at {SAMPLE_RATE} Hz"
        )
    try:
        source.check(requirements)
    except ValueError as error:
        raise ValueError(f"--ckpt {path}: {error}") from error
    return candidate


def _make_scorer(similarity: str | None, device: str) -> tuple[ClipScorer, str, dict[str, tuple[str, ...]]]:
    """Returns the scorer, the name of its speaker encoder, and the fact which scores are left out and why."""
    predictors, unavailable = available_predictors()
    left_out = [f"{name.upper()} ({reason})" for name, reason in unavailable.items()]
    embed, name = None, ""
    if similarity is not None:
        from sf_lightning.files.identify import ECAPA_WEIGHTS
        from sf_lightning.model.ecapa import PretrainedECAPA  # imports SpeechBrain

        if Path(similarity).exists() and not Path(similarity, ECAPA_WEIGHTS).is_file():
            raise FileNotFoundError(
                f"--similarity: no {ECAPA_WEIGHTS} in {similarity}: give the folder of SpeechBrain's ECAPA-TDNN"
            )
        encoder = PretrainedECAPA(similarity, device)
        name = f"{similarity} ({encoder.name})"

        def embed(wave):  # type: ignore[no-untyped-def]
            return encoder.encode([wave])[0]

    else:
        left_out.append("speaker similarity (no --similarity)")
    if left_out:
        print(f"left out: {', '.join(left_out)}", file=sys.stderr)
    return ClipScorer(embed, predictors), name, {"left out": (", ".join(left_out),)} if left_out else {}


def _describe_machine(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{device}, {cores}, {platform.machine()}, torch {torch.__version__}"


def _write_report(folder: Path, findings: Findings) -> list[Table]:
    """Writes the page and, where there are ratings, mean opinion scores; returns their table."""
    ratings = read_ratings(folder)
    opinions = [write_opinions(folder, ratings)] if ratings else []
    write_evaluation_report(folder / "report.html", findings, opinions)
    print(f"{'report:':16}{folder / 'report.html'}")
    files = [folder / name for name in ("table.md", "table.csv", "mos.md", "mos.csv")]
    print(f"{'tables:':16}{', '.join(str(path) for path in files if path.is_file())}")
    return opinions


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    lists = ("ckpt", "layout", "lookahead", "nfe", "guidance", "vocoder", "ratings")
    parser = command_parser("sf-eval", evaluate_checkpoints, lists=lists)
    evaluate_checkpoints(**vars(parser.parse_args(args)))


if __name__ == "__main__":
    main()
