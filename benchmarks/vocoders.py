"""Compares vocoders with Griffin-Lim on a shard set, by group of speakers; or measures the sizes of the recipes.

    python benchmarks/vocoders.py --shards shards/speech/dev --train shards/speech/train --vocoder small \\
        --group english='librispeech|vctk|speechocean762' --group mandarin=aishell [--json]
    python benchmarks/vocoders.py --sizes [--json]

Copy-synthesis of every clip, whole and streamed in chunks of one block with a look-ahead of one block, the default
of decoders. A group holds the speakers whose name its expression matches at the beginning; speakers that are not in
the set of `--train` are reported separately too. The real-time factor is seconds of computing per second of audio.
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
"""Frames of a chunk and of its look-ahead."""

NAMES = ("pesq_wb", "stoi", "visqol", "mr_stft", "periodicity")

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def decoded_whole(vocoder: Vocoder, mel: Tensor) -> Tensor:
    return vocoder.decode(mel[None])[0]


def decoded_streaming(vocoder: Vocoder, mel: Tensor, chunk: int = BLOCK) -> Tensor:
    return torch.cat([*stream_mel(vocoder, mel, chunk, ahead=BLOCK)])


def timed(decode: Callable[[Tensor], Tensor], mels: list[Tensor], rate: float) -> tuple[list[Tensor], float]:
    """Returns the waves [N] of mels [T, F], on the CPU, and the real-time factor; `rate` in frames per second."""
    decode(mels[0])  # warm-up
    start = time.perf_counter()
    waves = [decode(mel).cpu() for mel in mels]
    return waves, (time.perf_counter() - start) * rate / sum(len(mel) for mel in mels)


def clip_groups(
    shards: ShardSet, train: ShardSet | None, groups: dict[str, str], keys: list[str]
) -> dict[str, Tensor]:
    """Returns which clips are in each group of the table, bool [clips]."""
    speakers = {row.key: row.speaker for i in range(len(shards.manifest.shards)) for row in shards.read_index(i)}
    names = [speakers[key] for key in keys]
    parts = {"all": torch.ones(len(keys), dtype=torch.bool)}
    for name, expression in groups.items():
        parts[name] = torch.tensor([bool(re.match(expression, speaker)) for speaker in names])
    if train is not None:
        trained = {row.speaker for i in range(len(train.manifest.shards)) for row in train.read_index(i)}
        new = torch.tensor([speaker not in trained for speaker in names])
        parts |= {f"{name}, new speakers": members & new for name, members in parts.items()}
    return {name: members for name, members in parts.items() if members.any()}


@torch.inference_mode()
def compare(args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Returns the mean scores of each group, by vocoder and mode."""
    shards = ShardSet(args.shards)
    config = shards.manifest.mel
    clips = [drawn.clip for drawn in evenly_spaced_clips(shards, args.clips or shards.samples, ClipRequirements())]
    references = [torch.from_numpy(clip.wave) for clip in clips]
    to_mel = MelSpectrogram(config).to(device)
    mels = [to_mel(wave[None].to(device))[0] for wave in references]
    groups = dict(group.split("=", 1) for group in args.group)
    train = ShardSet(args.train) if args.train else None
    parts = clip_groups(shards, train, groups, [clip.key for clip in clips])
    vocoders: dict[str, Vocoder] = {"griffin-lim": GriffinLim(config, args.iterations)}
    vocoders |= {name: VocoderConfig(name).make(config) for name in args.vocoder}
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in parts}
    for name, vocoder in vocoders.items():
        if isinstance(vocoder, torch.nn.Module):
            vocoder.to(device)
        for mode, decode in ((name, decoded_whole), (f"{name}, streamed", decoded_streaming)):
            waves, factor = timed(partial(decode, vocoder), mels, config.frame_rate)
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
            for part, members in parts.items():
                found[part][mode] = {name: float(columns[name][members].nanmean()) for name in NAMES}
                missing = sum(int(columns[name][members].isnan().sum()) for name in NAMES)  # not in the means
                found[part][mode] |= {"clips": int(members.sum()), "no_score": missing, "real_time_factor": factor}
    return found


@torch.inference_mode()
def sizes(seconds: float = 3.0) -> dict[str, dict[str, float]]:
    """Returns parameters, context and real-time factors of each recipe, with random weights."""
    found = {}
    for name in RECIPES:
        path = Path(__file__).parents[1] / "experiments" / f"{name}.yaml"
        files = [option.removeprefix("--config=") for option in expand_configs([f"--config={path}"])]
        settings = OmegaConf.to_container(OmegaConf.merge(*map(OmegaConf.load, files)).model.generator)
        tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        config = from_plain(GeneratorConfig, tuples, "generator")
        vocoder = BigVGANVocoder(config.hyperparameters(MelConfig()), MelConfig()).to(device).eval()
        remove_weight_norm(vocoder.generator)  # as in a loaded vocoder
        mel = torch.randn(round(seconds * 100), 80, device=device)
        factors = {}
        for chunk in (BLOCK, 2 * BLOCK):
            _, factor = timed(partial(decoded_streaming, vocoder, chunk=chunk), [mel], 100)
            factors[f"RTF, chunks of {chunk}"] = factor
        count = sum(parameter.numel() for parameter in vocoder.parameters())
        found[name] = {"parameters": count, "context, frames": vocoder.left, **factors}
    return found


def show(console: Console, title: str, rows: dict[str, dict[str, float]]) -> None:
    columns = [*next(iter(rows.values()))]
    table = Table("", *columns, title=title)
    for name, values in rows.items():
        table.add_row(
            name,
            *(f"{values[column]:.3f}" if values[column] % 1 else f"{values[column]:.0f}" for column in columns),
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, help="shard set for copy-synthesis")
    parser.add_argument("--train", type=Path, help="training set, to report new speakers separately")
    parser.add_argument(
        "--vocoder", action="append", default=[], help="vocoder, as in sf-decode; repeat to compare several"
    )
    parser.add_argument(
        "--group", action="append", default=[], help="NAME=EXPRESSION: regular expression of speaker names"
    )
    parser.add_argument("--iterations", type=int, default=60, help="iterations of Griffin-Lim")
    parser.add_argument("--clips", type=int, help="number of clips, evenly spaced; by default all")
    parser.add_argument("--sizes", action="store_true", help="measure parameters, context and cost of the recipes")
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
