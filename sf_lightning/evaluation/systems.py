"""The systems that an evaluation compares: each checkpoint decoded with each combination of settings."""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.digest import digest_of
from sf_lightning.files.records import from_plain
from sf_lightning.flow.solver import Solver
from sf_lightning.model.layout import Layout
from sf_lightning.model.pretrained import Description, Pretrained
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.config import GRIFFIN_LIM, VocoderConfig

OWN = "own"
"""Name of the layout or the vocoder that a checkpoint was trained with."""


@dataclass(frozen=True)
class System:
    """One checkpoint decoded with one setting: a row of the table, every default resolved.

    The field names are stored in `evaluation.json`, and `id` is a digest of them.

    Attributes:
        kind: "copy_synthesis": the recording's mel through the vocoder, the upper bound of every decoder;
            "offline": the whole utterance decoded at once; "streamed": decoded chunk by chunk.
        vocoder: Vocoder; a Griffin-Lim vocoder has the checkpoint name "griffin_lim" and its number of iterations.
        mel: Mel settings of the vocoder's input.
        ckpt: Path of the checkpoint; empty, like all fields below, for copy-synthesis.
        layout: Name of the layout, as given.
        nfe: Network evaluations of a chunk.
        guidance: Strength of classifier-free guidance.
        lookahead: Look-ahead in blocks; None unless streamed.
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
        """Short digest of the settings, used in file names; equal settings have equal ids in every run."""
        return digest_of(json.dumps(asdict(self), sort_keys=True), 10)


@dataclass(frozen=True)
class Candidate:
    """A checkpoint under evaluation.

    Attributes:
        path: Path of the checkpoint, as given.
        description: Everything stored in the checkpoint but the weights.
        digest: Digest of description and weights.
        load: Loads the weights; several checkpoints need not be in memory at once. Raises ValueError if the file
            has changed since the digest was taken.
    """

    path: str
    description: Description
    digest: str
    load: Callable[[], Pretrained]


@dataclass(frozen=True)
class DecodingGrid:
    """Settings to decode each checkpoint with, in every combination; an empty tuple means the checkpoint's own.

    Args:
        layouts: `OWN`, names of presets, or paths of YAML files; the weights stay those of the checkpoint.
        lookaheads: Look-aheads in blocks.
        nfes: Network evaluations of a chunk, with the checkpoint's own solver.
        guidances: Strengths of classifier-free guidance.
        vocoders: `OWN`, "griffin_lim", or checkpoints of vocoders.
    """

    layouts: tuple[str, ...] = ()
    lookaheads: tuple[int, ...] = ()
    nfes: tuple[int, ...] = ()
    guidances: tuple[float, ...] = ()
    vocoders: tuple[str, ...] = ()


@dataclass(frozen=True)
class SystemGroup:
    """Systems with the same weights, layout, solver and vocoder: their clips are decoded offline only once.

    The look-ahead of `decode` is replaced by that of each system.
    """

    candidate: Candidate
    layout: Layout
    decode: DecodeConfig
    vocoder: VocoderConfig
    systems: tuple[System, ...]

    def decode_config(self, system: System) -> DecodeConfig:
        """Returns the decoding settings of a system of this group, with every default resolved."""
        if system.kind != "streamed":
            return replace(self.decode, mode="offline").resolve(self.layout)
        return replace(self.decode, lookahead=system.lookahead).resolve(self.layout)


def plan_systems(candidates: Sequence[Candidate], grid: DecodingGrid) -> list[SystemGroup]:
    """Returns the systems of all candidates and settings; a system that several combinations share appears once.

    Raises:
        FileNotFoundError: if a layout is unknown.
        ValueError: if a layout does not fit a checkpoint, or a setting is out of range.
    """
    groups, planned = list[SystemGroup](), set[System]()
    for candidate in candidates:
        description = candidate.description
        own = from_plain(DecodeConfig, description.decode, "decode")
        if own.mode == "offline" and grid.lookaheads:
            raise ValueError(
                f"--lookahead has no effect on {candidate.path}, which is decoded offline: leave it out"
            )
        for name, nfe, guidance, vocoder_name in itertools.product(
            grid.layouts or (OWN,),
            grid.nfes or (own.num_evaluations,),
            grid.guidances or (own.guidance,),
            grid.vocoders or (OWN,),
        ):
            layout = read_layout(name, description.model.layout)
            decode = replace(own, steps=_num_steps(nfe, own), guidance=float(guidance))
            vocoder = _vocoder_config(vocoder_name, description)
            output = (vocoder, description.model.mel)
            settings = (*output, candidate.path, name, nfe, float(guidance))
            systems = [System("copy_synthesis", *output), System("offline", *settings)]
            if own.mode != "offline":
                lookaheads = grid.lookaheads or (decode.resolve(layout).lookahead,)
                systems += [
                    System("streamed", *settings, replace(decode, lookahead=n).lookahead) for n in lookaheads
                ]
            new = tuple(system for system in dict.fromkeys(systems) if system not in planned)
            planned.update(new)
            if new:
                groups.append(SystemGroup(candidate, layout, decode, vocoder, new))
    return groups


def read_layout(name: str, own: Layout) -> Layout:
    """Returns the layout of `--layout` for a network of as many layers as the checkpoint's own layout has.

    Args:
        name: `OWN`, the name of a preset, or the path of a YAML file.
        own: Layout of the checkpoint.

    Raises:
        FileNotFoundError: if there is no such layout; the error lists the presets.
        ValueError: if the file does not describe a layout, or one of another number of layers.
    """
    if name == OWN:
        return own
    try:
        layout = Layout.read(name, num_layers=own.num_layers, block_size=own.block_size)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--layout: {error}, or {OWN}") from None
    except ValueError as error:
        raise ValueError(f"--layout {error}") from error
    if layout.num_layers != own.num_layers:
        raise ValueError(
            f"--layout {name} has {layout.num_layers} layers, the checkpoint has {own.num_layers}: leave "
            "num_layers out of the file and set drawn_for to the depth that its lists of layers refer to"
        )
    return layout


def _num_steps(nfe: int, decode: DecodeConfig) -> int:
    evaluations = Solver(1, decode.method).num_evaluations
    if nfe < 1 or nfe % evaluations:
        raise ValueError(
            f"--nfe is {nfe}, but the checkpoint's solver {decode.method} makes {evaluations} evaluations a step: "
            f"give a positive multiple of {evaluations}"
        )
    return nfe // evaluations


def _vocoder_config(name: str, description: Description) -> VocoderConfig:
    config = from_plain(VocoderConfig, description.vocoder, "vocoder") if name == OWN else VocoderConfig(name)
    return config if config.checkpoint == GRIFFIN_LIM else VocoderConfig(config.checkpoint)


def distinguishing_labels(systems: Sequence[System]) -> list[dict[str, str]]:
    """Returns for each system the settings in which the systems differ, as text by column name."""
    names = short_names([system.ckpt for system in systems if system.ckpt])
    vocoders = short_names([name for system in systems if (name := system.vocoder.name) != GRIFFIN_LIM])
    mels = [asdict(system.mel) for system in systems]
    differing = [name for name in asdict(MelConfig()) if len({mel[name] for mel in mels}) > 1]
    rows = []
    for system, mel in zip(systems, mels, strict=True):
        is_decoded = system.kind != "copy_synthesis"
        rows.append(
            {
                "mode": system.kind.replace("_", "-"),
                "checkpoint": names.get(system.ckpt, ""),
                "layout": system.layout,
                "look-ahead": "" if system.lookahead is None else str(system.lookahead),
                "NFE": str(system.nfe) if is_decoded else "",
                "guidance": str(system.guidance).removesuffix(".0") if is_decoded else "",
                "vocoder": vocoders.get(system.vocoder.name, f"griffin-lim {system.vocoder.iterations}"),
                "mel": ", ".join(f"{name} {mel[name]:g}" for name in differing),
            }
        )
    columns = [name for name in (rows or [{}])[0] if name == "mode" or len({row[name] for row in rows} - {""}) > 1]
    return [{name: row[name] for name in columns} for row in rows]


def join_labels(labels: dict[str, str]) -> str:
    """Returns the labels of a system in one line.

    >>> join_labels({"mode": "streamed", "checkpoint": "a/last", "look-ahead": "2", "NFE": "", "layout": "full"})
    'streamed, a/last, look-ahead 2, layout full'
    """
    clear = ("mode", "checkpoint", "vocoder")
    return ", ".join(text if name in clear else f"{name} {text}" for name, text in labels.items() if text)


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Returns by path its shortest ending that is unique, without "checkpoints" and ".ckpt".

    >>> short_names(["runs/a/checkpoints/last.ckpt", "runs/b/checkpoints/last.ckpt"])
    {'runs/a/checkpoints/last.ckpt': 'a/last', 'runs/b/checkpoints/last.ckpt': 'b/last'}
    """
    parts = {
        path: [part for part in Path(path.removesuffix(".ckpt")).parts if part != "checkpoints"] for path in paths
    }
    for length in range(2, max([2, *map(len, parts.values())]) + 1):
        names = {path: "/".join(pieces[-length:]) for path, pieces in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return {path: path for path in parts}
