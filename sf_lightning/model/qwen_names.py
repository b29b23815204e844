"""What the public sibling calls its weights, what we call them, and the sizes that they tell."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.speaker import SpeakerConfig, SpeakerEncoder

KINDS = ("weight", "bias")

TABLE, PROJECTION, SPEAKER = "text_embed.codec_embed.weight", "input_embed.proj", "input_embed.spk_encoder."


def same_modules(num_layers: int) -> dict[str, str]:
    """The modules that are the same in both networks: their names, ours."""
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
    """Our name of a weight of the reference encoder: SpeechBrain wraps every convolution in a module of its own."""
    path, kind = name.removeprefix(SPEAKER).rsplit(".", 1)
    return f"encoder.ecapa.{path}.conv.{kind}"


def their_encoder_name(name: str) -> str:
    """The sibling's name of a weight of ours: its copy of the encoder has bare convolutions."""
    path, kind = name.removeprefix("encoder.ecapa.").rsplit(".conv.", 1)
    return f"{SPEAKER}{path}.{kind}"


@dataclass(frozen=True)
class Sizes:
    """Sizes of the sibling's DiT, read off its weights."""

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
    def of(cls, state: Mapping[str, Tensor]) -> "Sizes":
        """Reads them.

        Raises:
            ValueError: if a weight is missing or one too many.
        """
        numbers = {name.split(".")[1] for name in state if name.startswith("transformer_blocks.")}
        layers = [number for number in numbers if number.isdigit()]
        attention = [f"transformer_blocks.{i}.attn.to_{x}" for i in range(len(layers)) for x in "qkv"]
        modules = (*same_modules(len(layers)), *attention, PROJECTION)
        wanted = {f"{name}.{kind}" for name in modules for kind in KINDS} | {TABLE}
        # Frequencies of the rotation are constants; older versions saved them.
        came = {name for name in state if not name.startswith("rotary_embed.")}
        with torch.device("meta"):
            encoder = SpeakerEncoder(SpeakerConfig(encoder="qwen", channels=8), MelConfig(), 8)
        wanted |= {their_encoder_name(f"encoder.{name}") for name in encoder.ecapa.state_dict(prefix="ecapa.")}
        if missing := sorted(wanted - came):
            raise ValueError(f"not weights of Qwen2.5-Omni's token2wav: {missing[0]} is missing")
        if odd := sorted(came - wanted):
            raise ValueError(f"not weights of Qwen2.5-Omni's token2wav: {odd[0]} is unknown")
        first = f"{SPEAKER}blocks.0.conv.weight"
        for name, ndim in (("proj_out.weight", 2), (TABLE, 2), (f"{PROJECTION}.weight", 2), (first, 3)):
            if state[name].ndim != ndim:
                raise ValueError(f"{name} has shape {list(state[name].shape)}: wanted {ndim} dimensions")
        bands, width = state["proj_out.weight"].shape
        rows, token_width = state[TABLE].shape
        reference = state[f"{SPEAKER}fc.weight"].shape[0]
        inputs, least = state[f"{PROJECTION}.weight"].shape[1], bands + reference + token_width
        if inputs <= least:
            raise ValueError(
                f"{PROJECTION}.weight takes {inputs} inputs: wanted more than {least}, of mel, speaker and token"
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
