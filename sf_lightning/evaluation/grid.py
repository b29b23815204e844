"""What is evaluated: ways to make speech, as the product of checkpoints and how they are decoded."""

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import yaml

from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.records import from_plain
from sf_lightning.flow.solver import Solver
from sf_lightning.model.layout import Layout
from sf_lightning.model.pretrained import Description, Pretrained
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.config import GRIFFIN_LIM, VocoderConfig

OWN = "own"
"""As a layout or a vocoder: the one that the checkpoint was trained with."""

PRESETS = Path(__file__).parents[2] / "experiments" / "layouts"
"""Where the layouts lie that have a name; those of the working directory go before them."""


@dataclass(frozen=True)
class Way:
    """One way to make speech, a row of the table; nothing is left open.

    Attributes:
        kind: "copy_synthesis": the true mel through the vocoder, which no decoder passes; "offline": the whole
            utterance at once; "streamed": chunk by chunk.
        vocoder: What makes the mel audible; Griffin-Lim by its name, and its iterations with no other.
        mel: Of which sound is made.
        ckpt: Path of the checkpoint; empty, as all that follows, for copy-synthesis.
        layout: Its name, as it was given.
        nfe: Network evaluations of a chunk.
        guidance: Strength of guidance.
        lookahead: Blocks waited for beyond a chunk, where it is streamed.
    """

    kind: Literal["copy_synthesis", "offline", "streamed"]
    vocoder: VocoderConfig
    mel: MelConfig
    ckpt: str = ""
    layout: str = ""
    nfe: int = 0
    guidance: float = 0.0
    lookahead: int | None = None

    @cached_property
    def id(self) -> str:
        """A short name that is the same in every run, for files."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Subject:
    """A checkpoint that is evaluated.

    Attributes:
        path: As it was given.
        description: All of it but the weights.
        digest: Of the whole.
        load: Reads it again, weights and all: several need not be in memory together. Raises ValueError if it is
            not what it was.
    """

    path: str
    description: Description
    digest: str
    load: Callable[[], Pretrained]


@dataclass(frozen=True)
class Options:
    """How each checkpoint is decoded: every combination; where a list is empty, as the checkpoint says.

    Args:
        layouts: `OWN`, names of presets, or YAML files; the same weights are decoded under another mask.
        lookaheads: Blocks waited for beyond a chunk.
        nfes: Network evaluations of a chunk, with the checkpoint's own solver.
        guidances: Strengths of guidance.
        vocoders: `OWN`, "griffin_lim", or checkpoints of vocoders.
    """

    layouts: tuple[str, ...] = ()
    lookaheads: tuple[int, ...] = ()
    nfes: tuple[int, ...] = ()
    guidances: tuple[float, ...] = ()
    vocoders: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Ways that share weights, layout, solver and vocoder, so that decoding offline once serves all.

    Attributes:
        subject: Whose weights.
        layout: Under which they are decoded.
        decode: How; the look-ahead is that of each way.
        vocoder: What makes the mel audible.
        ways: What comes of it.
    """

    subject: Subject
    layout: Layout
    decode: DecodeConfig
    vocoder: VocoderConfig
    ways: tuple[Way, ...]

    def config(self, way: Way) -> DecodeConfig:
        """How one of the ways is decoded, nothing left open."""
        if way.kind != "streamed":
            return replace(self.decode, mode="offline").resolve(self.layout)
        return replace(self.decode, lookahead=way.lookahead).resolve(self.layout)


def plan(subjects: Sequence[Subject], options: Options) -> list[Group]:
    """Returns all that is to be evaluated; what several combinations have in common is there once.

    Raises:
        FileNotFoundError: if a layout is unknown.
        ValueError: if a layout does not fit a checkpoint, or a setting is out of range.
    """
    groups, taken = list[Group](), set[Way]()
    for subject in subjects:
        description = subject.description
        own = from_plain(DecodeConfig, description.decode, "decode")
        if own.mode == "offline" and options.lookaheads:
            raise ValueError(f"--lookahead: {subject.path} is decoded offline, it waits for all: leave it out")
        for name, nfe, guidance, vocoder in itertools.product(
            options.layouts or (OWN,),
            options.nfes or (own.num_evaluations,),
            options.guidances or (own.guidance,),
            options.vocoders or (OWN,),
        ):
            layout = read_layout(name, description.model.layout)
            decode = replace(own, steps=_steps(nfe, own), guidance=float(guidance))
            voice = _vocoder(vocoder, description)
            sound = (voice, description.model.mel)
            of = (*sound, subject.path, name, nfe, float(guidance))
            ways = [Way("copy_synthesis", *sound), Way("offline", *of)]
            if own.mode != "offline":
                aheads = options.lookaheads or (decode.resolve(layout).lookahead,)
                ways += [Way("streamed", *of, replace(decode, lookahead=n).lookahead) for n in aheads]
            fresh = tuple(way for way in dict.fromkeys(ways) if way not in taken)
            taken.update(fresh)
            if fresh:
                groups.append(Group(subject, layout, decode, voice, fresh))
    return groups


def presets() -> dict[str, Path]:
    """Returns the files of the layouts that have a name, by name."""
    files = [path for folder in (PRESETS, Path("experiments/layouts")) for path in sorted(folder.glob("*.yaml"))]
    return {path.stem: path for path in files}


def read_layout(name: str, own: Layout) -> Layout:
    """Returns the layout of a name or a YAML file for a network of as many layers as its own has.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no layout, or one of another number of layers.
    """
    if name == OWN:
        return own
    path = Path(name) if Path(name).is_file() else presets().get(name)
    if path is None:
        raise FileNotFoundError(f"--layout {name}: no such file, and none of {', '.join([OWN, *presets()])}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            values = {"num_layers": own.num_layers, "block_size": own.block_size} | values
        layout = from_plain(Layout, values, "layout")
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"--layout {path}: {error}") from error
    if layout.num_layers != own.num_layers:
        raise ValueError(
            f"--layout {path} has {layout.num_layers} layers, the checkpoint has {own.num_layers}: leave "
            "num_layers out of the file, and name the depth that it is drawn for with drawn_for"
        )
    return layout


def _steps(nfe: int, decode: DecodeConfig) -> int:
    each = Solver(1, decode.method).num_evaluations
    if nfe < 1 or nfe % each:
        raise ValueError(f"--nfe {nfe}: the checkpoint's {decode.method} makes {each} a step, wanted a multiple")
    return nfe // each


def _vocoder(name: str, description: Description) -> VocoderConfig:
    config = from_plain(VocoderConfig, description.vocoder, "vocoder") if name == OWN else VocoderConfig(name)
    if config.checkpoint in (None, GRIFFIN_LIM):
        return replace(config, checkpoint=GRIFFIN_LIM)
    return VocoderConfig(config.checkpoint)


def describe(ways: Sequence[Way]) -> list[dict[str, str]]:
    """Returns what tells each way from the others, by column; what all have in common is left out."""
    names = short_names([way.ckpt for way in ways if way.ckpt])
    vocoders = short_names([each for way in ways if (each := way.vocoder.checkpoint) not in (None, GRIFFIN_LIM)])
    mels = [asdict(way.mel) for way in ways]
    differing = [name for name in asdict(MelConfig()) if len({mel[name] for mel in mels}) > 1]
    told = []
    for way, mel in zip(ways, mels, strict=True):
        ahead = "" if way.lookahead is None else str(way.lookahead)
        kind = way.kind.replace("_", "-")
        sound = vocoders.get(way.vocoder.checkpoint or "", f"griffin-lim {way.vocoder.iterations}")
        decoded = {"layout": way.layout, "NFE": str(way.nfe), "guidance": str(way.guidance).removesuffix(".0")}
        if way.kind == "copy_synthesis":
            decoded = dict.fromkeys(decoded, "")
        told.append({"checkpoint": names.get(way.ckpt, ""), "way": kind, "look-ahead": ahead} | decoded)
        told[-1] |= {"vocoder": sound, "mel": ", ".join(f"{name} {mel[name]:g}" for name in differing)}
    apart = ["way"] if ways else []
    for column in ("checkpoint", "layout", "look-ahead", "NFE", "guidance", "vocoder", "mel"):
        if len({each[column] for each in told} - {""}) > 1:
            apart.append(column)
    return [{column: each[column] for column in apart} for each in told]


def label(told: dict[str, str]) -> str:
    """Says in a line what tells a way from the others.

    >>> label({"way": "streamed", "checkpoint": "a/last", "look-ahead": "2", "NFE": "", "layout": "full"})
    'streamed, a/last, look-ahead 2, layout full'
    """
    bare = ("way", "checkpoint", "vocoder")
    return ", ".join(text if name in bare else f"{name} {text}" for name, text in told.items() if text)


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Returns the shortest ends of paths that still tell them apart, without what all checkpoints are called by.

    >>> short_names(["runs/a/checkpoints/last.ckpt", "runs/b/checkpoints/last.ckpt"])
    {'runs/a/checkpoints/last.ckpt': 'a/last', 'runs/b/checkpoints/last.ckpt': 'b/last'}
    """
    parts = {
        path: [each for each in Path(path.removesuffix(".ckpt")).parts if each != "checkpoints"] for path in paths
    }
    for length in range(2, max([2, *map(len, parts.values())]) + 1):
        names = {path: "/".join(each[-length:]) for path, each in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return {path: path for path in parts}
