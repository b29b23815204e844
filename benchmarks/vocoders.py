"""Vocoders beside Griffin-Lim on whole sets, by kind of speaker; and what the sizes of the recipes cost as streams.

    python benchmarks/vocoders.py --shards shards/speech/dev --train shards/speech/train --vocoder small \\
        --group english='librispeech|vctk|speechocean762' --group mandarin=aishell [--json]
    python benchmarks/vocoders.py --sizes [--json]

Every clip is made of its own mel, whole and streamed in chunks of a block with a block of look-ahead, as a
decoder's default is. Speakers whose name begins with a group's expression are in it; those that are not in the set
of `--train` are reported apart. The real-time factor is seconds of computing for a second of sound.
"""

import argparse
import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.audio.wave import resampled
from sf_lightning.cli.configs import expand_configs
from sf_lightning.data.held_out import evenly_spaced_clips
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.shards import ShardSet
from sf_lightning.evaluation.scores import ClipScorer
from sf_lightning.files.records import from_plain
from sf_lightning.streaming.vocoding import stream_mel
from sf_lightning.vocoder.base import Vocoder
from sf_lightning.vocoder.bigvgan import BigVGANVocoder, remove_weight_norm
from sf_lightning.vocoder.config import VocoderConfig
from sf_lightning.vocoder.generator import GeneratorConfig
from sf_lightning.vocoder.griffin_lim import GriffinLim

RECIPES = ("vocoder", "vocoder_base", "vocoder_small")
BLOCK = 24
"""Frames of a chunk, and of its look-ahead."""

NAMES = ("pesq_wb", "stoi", "visqol", "mr_stft", "periodicity")

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def whole(vocoder: Vocoder, mel: Tensor) -> Tensor:
    return vocoder.decode(mel[None])[0]


def streamed(vocoder: Vocoder, mel: Tensor, chunk: int = BLOCK) -> Tensor:
    return torch.cat([*stream_mel(vocoder, mel, chunk, ahead=BLOCK)])


def timed(make: Callable[[Tensor], Tensor], mels: list[Tensor], rate: float) -> tuple[list[Tensor], float]:
    """Returns the waves [N] of mels [T, F], on the CPU, and the real-time factor; `rate` in frames a second."""
    make(mels[0])  # once for nothing
    began = time.perf_counter()
    waves = [make(mel).cpu() for mel in mels]
    return waves, (time.perf_counter() - began) * rate / sum(len(mel) for mel in mels)


def parts_of(
    shards: ShardSet, train: ShardSet | None, groups: dict[str, str], keys: list[str]
) -> dict[str, Tensor]:
    """Which clips belong to which part of the table, bool [clips]."""
    speakers = {row.key: row.speaker for i in range(len(shards.manifest.shards)) for row in shards.read_index(i)}
    whose = [speakers[key] for key in keys]
    parts = {"all": torch.ones(len(keys), dtype=torch.bool)}
    for name, expression in groups.items():
        parts[name] = torch.tensor([bool(re.match(expression, each)) for each in whose])
    if train is not None:
        heard = {row.speaker for i in range(len(train.manifest.shards)) for row in train.read_index(i)}
        new = torch.tensor([each not in heard for each in whose])
        parts |= {f"{name}, new speakers": which & new for name, which in parts.items()}
    return {name: which for name, which in parts.items() if which.any()}


@torch.inference_mode()
def compare(args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of each part of the set, by way."""
    shards = ShardSet(args.shards)
    config = shards.manifest.mel
    clips = [each.clip for each in evenly_spaced_clips(shards, args.clips or shards.samples, ClipRequirements())]
    references = [torch.from_numpy(clip.wave) for clip in clips]
    to_mel = MelSpectrogram(config).to(device)
    mels = [to_mel(wave[None].to(device))[0] for wave in references]
    groups = dict(each.split("=", 1) for each in args.group)
    train = ShardSet(args.train) if args.train else None
    parts = parts_of(shards, train, groups, [clip.key for clip in clips])
    vocoders: dict[str, Vocoder] = {"griffin-lim": GriffinLim(config, args.iterations)}
    vocoders |= {name: VocoderConfig(name).make(config) for name in args.vocoder}
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in parts}
    for name, vocoder in vocoders.items():
        if isinstance(vocoder, torch.nn.Module):
            vocoder.to(device)
        for way, make in ((name, whole), (f"{name}, streamed", streamed)):
            waves, factor = timed(partial(make, vocoder), mels, config.frame_rate)
            waves = [resampled(wave, vocoder.sample_rate, config.sample_rate) for wave in waves]
            scorer, no_edges = (
                ClipScorer(copies=True, sample_rate=config.sample_rate),
                torch.empty(0, dtype=torch.long),
            )
            pending = [
                scorer.start("", wave, reference, mel.cpu(), mel.cpu(), no_edges)
                for wave, reference, mel in zip(waves, references, mels, strict=True)
            ]
            rows = [scores.collect() for scores in pending]
            columns = {name: torch.tensor([row[name] for row in rows]) for name in NAMES}
            for part, which in parts.items():
                found[part][way] = {name: float(columns[name][which].nanmean()) for name in NAMES}
                missing = sum(int(columns[name][which].isnan().sum()) for name in NAMES)  # left out of the means
                found[part][way] |= {"clips": int(which.sum()), "no_score": missing, "real_time_factor": factor}
    return found


@torch.inference_mode()
def sizes(seconds: float = 3.0) -> dict[str, dict[str, float]]:
    """Of each recipe parameters, context and real-time factors, with random weights."""
    found = {}
    for name in RECIPES:
        path = Path(__file__).parents[1] / "experiments" / f"{name}.yaml"
        laid = [OmegaConf.load(each.removeprefix("--config=")) for each in expand_configs([f"--config={path}"])]
        given = OmegaConf.to_container(OmegaConf.merge(*laid).model.generator)
        tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        config = from_plain(GeneratorConfig, tuples, "generator")
        vocoder = BigVGANVocoder(config.hyperparameters(MelConfig()), MelConfig()).to(device).eval()
        remove_weight_norm(vocoder.generator)  # as in what is loaded
        mel = torch.randn(round(seconds * 100), 80, device=device)
        factors = {}
        for chunk in (BLOCK, 2 * BLOCK):
            _, factor = timed(partial(streamed, vocoder, chunk=chunk), [mel], 100)
            factors[f"RTF, chunks of {chunk}"] = factor
        count = sum(parameter.numel() for parameter in vocoder.parameters())
        found[name] = {"parameters": count, "context, frames": vocoder.left, **factors}
    return found


def show(console: Console, title: str, rows: dict[str, dict[str, float]]) -> None:
    columns = [*next(iter(rows.values()))]
    table = Table("", *columns, title=title)
    for name, values in rows.items():
        table.add_row(
            name, *(f"{values[each]:.3f}" if values[each] % 1 else f"{values[each]:.0f}" for each in columns)
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, help="a shard set whose clips are made of their own mels")
    parser.add_argument("--train", type=Path, help="the set of training, for who is new")
    parser.add_argument(
        "--vocoder", action="append", default=[], help="as sf-decode takes it; several are compared"
    )
    parser.add_argument("--group", action="append", default=[], help="NAME=EXPRESSION of speakers' names")
    parser.add_argument("--iterations", type=int, default=60, help="of Griffin-Lim")
    parser.add_argument("--clips", type=int, help="so many of the set, evenly spread; by default all")
    parser.add_argument("--sizes", action="store_true", help="parameters, context and cost of the recipes instead")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()
    if args.sizes == (args.shards is not None):
        parser.error("give either --shards or --sizes")
    console = Console(width=120, force_terminal=False)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    console.print(f"{where}, torch {torch.__version__}")
    found = {"recipes": sizes()} if args.sizes else compare(args)
    for title, rows in found.items():
        show(console, title, rows)
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
