"""Runs that take seconds, and mistakes that take a line."""

from pathlib import Path

import pytest

from sf_lightning.data.shards import ShardSet

DEMO = Path(__file__).parents[2] / "experiments" / "demo.yaml"

TOY = [
    "--model.layout={num_layers: 2, backward: [0], forward: [1]}",
    "--model.dit={width: 32, num_heads: 2, token_width: 16, speaker_width: 8, vocabulary: 50}",
    "--model.speaker={channels: 8, crop_seconds: 0.5}",
    "--model.decode.steps=2",
    "--model.vocoder.iterations=4",
    "--data.pack_frames=192",
    "--data.val_clips=3",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--trainer.log_every_n_steps=1",
]


def arguments(shards: ShardSet, run: Path, *more: str) -> list[str]:
    """A toy run of the demo's config."""
    where = [
        f"--data.train={shards.folder}",
        f"--data.val={shards.folder}",
        f"--trainer.default_root_dir={run}",
    ]
    return ["--config", str(DEMO), *TOY, *where, *more]


TOY_VOCODER = [
    "--model.generator={upsample_rates: [10, 16], upsample_kernel_sizes: [20, 32], channels: 16}",
    "--model.generator.kernel_sizes=[3]",
    "--model.generator.dilations=[1]",
    "--model.discriminators={kind: resolutions, periods: [2], width: 0.03125}",
    "--model.segments={frames: 16, per_pack: 2}",
    "--model.compile=false",
]


def mistake(capsys: pytest.CaptureFixture, command, *args: str) -> str:
    """Runs a command that must end with 2 and one line; returns the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        command(list(args))
    said = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in said if line.startswith("error: ")]
    assert exit_.value.code == 2 and len(errors) == 1 and "Traceback" not in "\n".join(said), said
    return errors[0]
