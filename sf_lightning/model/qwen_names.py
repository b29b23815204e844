"""Names of the weights of Qwen2.5-Omni token2wav's DiT and of ours, and the sizes that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.speaker import SpeakerConfig, SpeakerEncoder
from sf_lightning.model.streamflow import MelScale, StreamFlow

X_VECTORS = "qwen2.5-omni"
"""Name of the encoder of token2wav's x-vectors."""

SCALE = MelScale(mean=0.0, std=1.0)
KINDS = ("weight", "bias")

TABLE, PROJECTION, SPEAKER = "text_embed.codec_embed.weight", "input_embed.proj", "input_embed.spk_encoder."


def same_modules(num_layers: int) -> dict[str, str]:
    """Returns the modules that both networks have: our name by token2wav's name."""
    pairs = {
        "time_embed.time_mlp.0": "dit.time.mlp.0",
        "time_embed.time_mlp.2": "dit.time.mlp.2",
        "norm_out.linear": f"dit.modulations.{num_layers}",
        "proj_out": "dit.to_velocity",
    }
    for i in range(num_layers):
        pairs |= {
            f"transformer_blocks.{i}.attn_norm.linear": f"dit.modulations.{i}",
            f"transformer_blocks.{i}.attn.to_out.0": f"dit.layers.{i}.attention.out",
            f"transformer_blocks.{i}.ff.ff.0": f"dit.layers.{i}.mlp.0",
            f"transformer_blocks.{i}.ff.ff.3": f"dit.layers.{i}.mlp.2",
        }
    return pairs


def our_encoder_name(name: str) -> str:
    """Returns our name of a weight of the reference encoder: SpeechBrain wraps every convolution in a module."""
    path, kind = name.removeprefix(SPEAKER).rsplit(".", 1)
    return f"encoder.ecapa.{path}.conv.{kind}"


def their_encoder_name(name: str) -> str:
    """Returns token2wav's name of a weight of our reference encoder: its convolutions are not wrapped."""
    path, kind = name.removeprefix("encoder.ecapa.").rsplit(".conv.", 1)
    return f"{SPEAKER}{path}.{kind}"


@dataclass(frozen=True)
class Sizes:
    """Sizes of token2wav's DiT."""

    num_layers: int
    width: int
    inner: int
    token_width: int
    num_bands: int
    vocabulary: int
    reference_width: int
    x_vector_width: int
    speaker_channels: int

    @classmethod
    def from_weights(cls, state: Mapping[str, Tensor]) -> "Sizes":
        """Returns the sizes of the network that a state dict is of.

        Raises:
            ValueError: if a weight is missing or unknown, or has another number of dimensions.
        """
        numbers = {name.split(".")[1] for name in state if name.startswith("transformer_blocks.")}
        layers = [number for number in numbers if number.isdigit()]
        attention = [f"transformer_blocks.{i}.attn.to_{x}" for i in range(len(layers)) for x in "qkv"]
        modules = (*same_modules(len(layers)), *attention, PROJECTION)
        expected = {f"{name}.{kind}" for name in modules for kind in KINDS} | {TABLE}
        # Frequencies of the rotation are constants; older versions saved them.
        found = {name for name in state if not name.startswith("rotary_embed.")}
        with torch.device("meta"):
            encoder = SpeakerEncoder(SpeakerConfig(encoder="qwen", channels=8), MelConfig(), 8)
        expected |= {their_encoder_name(f"encoder.{name}") for name in encoder.ecapa.state_dict(prefix="ecapa.")}
        if missing := sorted(expected - found):
            raise ValueError(f"not weights of Qwen2.5-Omni's token2wav: {missing[0]} is missing")
        if unknown := sorted(found - expected):
            raise ValueError(f"not weights of Qwen2.5-Omni's token2wav: {unknown[0]} is unknown")
        first = f"{SPEAKER}blocks.0.conv.weight"
        for name, ndim in (("proj_out.weight", 2), (TABLE, 2), (f"{PROJECTION}.weight", 2), (first, 3)):
            if state[name].ndim != ndim:
                raise ValueError(f"{name} has shape {list(state[name].shape)}: expected {ndim} dimensions")
        bands, width = state["proj_out.weight"].shape
        rows, token_width = state[TABLE].shape
        reference = state[f"{SPEAKER}fc.weight"].shape[0]
        inputs, least = state[f"{PROJECTION}.weight"].shape[1], bands + reference + token_width
        if inputs <= least:
            raise ValueError(
                f"{PROJECTION}.weight has {inputs} inputs: expected more than {least}, of mel, speaker and token"
            )
        return cls(
            num_layers=len(layers),
            width=width,
            inner=state["transformer_blocks.0.ff.ff.0.weight"].shape[0],
            token_width=token_width,
            num_bands=bands,
            vocabulary=rows - 1,
            reference_width=reference,
            x_vector_width=inputs - least,
            speaker_channels=state[first].shape[0],
        )


def require_equal(message: str, *settings: tuple[str, Any, Any]) -> None:
    """Raises ValueError for the first setting, of name, our value and token2wav's, whose values differ."""
    for name, ours, theirs in settings:
        if ours != theirs:
            raise ValueError(f"{name} is {ours!r}, {message} {theirs!r}")


def fixed_settings(model: StreamFlow) -> list[tuple[str, Any, Any]]:
    """Returns the settings that token2wav's weights imply: option, our value, token2wav's."""
    config = model.dit.config
    rope_heads = config.num_heads if config.rope_heads is None else config.rope_heads
    return [
        ("dit.rope_heads", rope_heads, 1),
        ("predict", model.predict, "velocity"),
        ("scale", (model.scale.mean, model.scale.std), (SCALE.mean, SCALE.std)),
    ]
