"""Converts the weights of Qwen2.5-Omni token2wav's DiT (arXiv 2503.20215) to our network.

The networks differ in their inputs: in token2wav one attention head is rotated, the embedding of a token is
repeated for each of its frames, the speaker is the embedding of a reference mel beside an x-vector, and the null
condition is code 0 with the speaker embedding of silence. All of that is configuration of our network. token2wav
predicts the velocity of the unscaled log-mel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.torch_files import read_torch, weight_mismatches
from sf_lightning.model.dit import DiTConfig
from sf_lightning.model.layout import Layout
from sf_lightning.model.qwen_files import read_qwen, strip_prefix
from sf_lightning.model.qwen_names import (
    KINDS,
    PROJECTION,
    SCALE,
    SPEAKER,
    TABLE,
    X_VECTORS,
    Sizes,
    fixed_settings,
    our_encoder_name,
    require_equal,
    same_modules,
)
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import StreamFlow

COMPONENT = "code2wav_dit_model"

HEAD_WIDTH = 64


@dataclass
class WarmStart:
    """Report of a warm start.

    Attributes:
        loaded: Number of our parameters whose values were loaded.
        parameters: Number of all our parameters.
        notes: One clause for each part that was resized, initialized at random or skipped.
    """

    loaded: int
    parameters: int
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.loaded / 1e6:.1f} M of {self.parameters / 1e6:.1f} M parameters loaded"
        return "; ".join([head, *self.notes])


def warm_start(model: StreamFlow, path: Path) -> WarmStart:
    """Initializes a model with token2wav's weights from disk, and reports which were loaded.

    Args:
        model: Model of the same width and depth; its layout, frames per token, vocabulary and speaker inputs may
            differ.
        path: Folder of Qwen2.5-Omni, one of its safetensors files, or a state dict.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if a file is damaged, or the weights are of another architecture.
    """
    state, config = read_qwen(path, COMPONENT)
    # The number of heads does not follow from the weights; without a config it is the released model's.
    heads = config.get("num_attention_heads", Sizes.from_weights(state).width // HEAD_WIDTH)
    if heads != model.dit.config.num_heads:
        raise ValueError(f"{path} has {heads} attention heads, dit.num_heads is {model.dit.config.num_heads}")
    return fill(model, state)


def from_qwen(state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> StreamFlow:
    """Returns our network with token2wav's weights, with the sizes of the weights.

    Args:
        state_dict: State dict of its DiT, or of a model that contains it, with or without prefixes.
        config: Its `dit_config`, for what does not follow from the weights: layout, block size, heads, frames per
            token; by default those of the released model.

    Raises:
        ValueError: if the weights are of another architecture.
    """
    state = strip_prefix(state_dict, COMPONENT)
    config = config or {}
    sizes = Sizes.from_weights(state)
    model = StreamFlow(
        Layout(
            num_layers=sizes.num_layers,
            block_size=config.get("block_size", 24),
            backward=tuple(config.get("look_backward_layers", (0, 20))),
            forward=tuple(config.get("look_ahead_layers", (10,))),
        ),
        DiTConfig(
            width=sizes.width,
            num_heads=config.get("num_attention_heads", sizes.width // HEAD_WIDTH),
            rope_heads=1,
            mlp_ratio=sizes.inner // sizes.width,
            token_width=sizes.token_width,
            token_repeat=True,
            speaker_width=sizes.reference_width + sizes.x_vector_width,
            null_condition="zeros",
            num_bands=sizes.num_bands,
            vocabulary=sizes.vocabulary,
            frames_per_token=config.get("repeats", 2),
        ),
        MelConfig(num_bands=sizes.num_bands),
        SCALE,
        SpeakerConfig(
            encoder="qwen",
            channels=sizes.speaker_channels,
            x_vectors=X_VECTORS,
            x_vector_width=sizes.x_vector_width,
        ),
        predict="velocity",
    )
    fill(model, state)
    return model.eval()


@torch.inference_mode()
def read_voices(model: StreamFlow, path: Path) -> dict[str, Tensor]:
    """Returns the speaker embeddings [S] of the voices in Qwen2.5-Omni's `spk_dict.pt`, by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no voices, or the model has other speaker inputs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected the spk_dict.pt of Qwen2.5-Omni")
    voices = {}
    for name, voice in read_torch(path).items():
        if not isinstance(voice, dict) or not {"cond", "ref_mel"} <= voice.keys():
            raise ValueError(f"{path}: {name!r} is no voice: expected its x-vector 'cond' and its 'ref_mel'")
        x_vector = voice["cond"].float().view(1, -1)
        voices[name] = model.encoder(voice["ref_mel"].float().view(1, -1, model.encoder.num_bands), x_vector)[0]
    return voices


def fill(model: StreamFlow, state: Mapping[str, Tensor]) -> WarmStart:
    """Copies the weights of token2wav's DiT, without prefix, that the model can use; reports which were loaded.

    Raises:
        ValueError: if the weights are of another architecture, or predict another quantity than the model.
    """
    sizes = Sizes.from_weights(state)
    config = model.dit.config
    require_equal(
        "the weights to start from have",
        ("layout.num_layers", model.layout.num_layers, sizes.num_layers),
        ("dit.width", config.width, sizes.width),
        ("dit.mlp_ratio", config.mlp_ratio, sizes.inner // sizes.width),
        ("dit.token_width", config.token_width, sizes.token_width),
        ("dit.num_bands", config.num_bands, sizes.num_bands),
        *fixed_settings(model),
    )
    report = WarmStart(0, sum(p.numel() for p in model.parameters()))
    new = _renamed_weights(state, sizes.num_layers)
    if sizes.vocabulary == config.vocabulary:
        new["dit.tokens.table.weight"] = _token_table(model, state[TABLE])
        how = "shared by" if config.token_repeat else "copied for each of"
        report.notes.append(f"the embedding of a token is {how} its {config.frames_per_token} frames")
        if config.null_condition == "learned":
            report.notes.append("the learned null token starts as token2wav's, code 0")
    else:
        report.notes.append(
            f"token embedding initialized at random: the weights have a vocabulary of {sizes.vocabulary}, "
            f"dit.vocabulary is {config.vocabulary}"
        )
    encoder, columns = _speaker_weights(model, state, sizes, report)
    new |= encoder
    new["dit.from_mel.weight"] = state[f"{PROJECTION}.weight"][:, : sizes.num_bands]
    new["dit.from_mel.bias"] = state[f"{PROJECTION}.bias"]
    ours = model.state_dict()
    # Inputs without weights start at zero: the network then computes the same function, without a speaker.
    condition = torch.zeros_like(ours["dit.from_condition.weight"])
    for start, value in columns:
        condition[:, start : start + value.shape[1]] = value
    report.loaded = sum(value.numel() for value in new.values()) + sum(value.numel() for _, value in columns)
    new["dit.from_condition.weight"] = condition
    if mismatches := weight_mismatches(new, {name: ours[name] for name in new}):
        raise ValueError(mismatches[0])
    model.load_state_dict({**ours, **new})
    if model.encoder.learned_null is not None and len(encoder):
        with torch.no_grad():
            model.encoder.learned_null.copy_(model.encoder.silence())
        report.notes.append("the learned null speaker starts as token2wav's, the embedding of silence")
    return report


def _renamed_weights(state: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Returns the weights that both networks have, under our names."""
    pairs = same_modules(num_layers).items()
    new = {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for theirs, ours in pairs for kind in KINDS}
    for i in range(num_layers):
        here, there = f"dit.layers.{i}", f"transformer_blocks.{i}"
        for kind in KINDS:
            new[f"{here}.attention.qkv.{kind}"] = torch.cat([state[f"{there}.attn.to_{x}.{kind}"] for x in "qkv"])
    return new


def _token_table(model: StreamFlow, table: Tensor) -> Tensor:
    """Returns the token embedding [V + 1, (frames per token) D]; the null token's row copies that of code 0."""
    config = model.dit.config
    if config.null_condition == "learned":
        table = torch.cat([table[: config.vocabulary], table[:1]])
    return (table.float() / model.dit.tokens.scale).repeat(1, 1 if config.token_repeat else config.frames_per_token)


def _speaker_weights(
    model: StreamFlow, state: Mapping[str, Tensor], sizes: Sizes, report: WarmStart
) -> tuple[dict[str, Tensor], list[tuple[int, Tensor]]]:
    """Returns the encoder's weights under our names, and the usable columns of the condition's projection."""
    config, speaker = model.dit.config, model.speaker
    weight = state[f"{PROJECTION}.weight"]
    widths = [sizes.num_bands, sizes.reference_width, sizes.token_width, sizes.x_vector_width]
    _, reference, token, x_vector = weight.split(widths, dim=1)
    columns = [(0, token)]
    encoder: dict[str, Tensor] = {}
    own = config.speaker_width - speaker.stored_width
    if speaker.encoder == "qwen":
        require_equal(
            "the weights to start from have",
            ("speaker.channels", speaker.channels, sizes.speaker_channels),
            ("dit.speaker_width without x-vectors", own, sizes.reference_width),
        )
        encoder = {our_encoder_name(name): v for name, v in state.items() if name.startswith(SPEAKER)}
        columns.append((sizes.token_width, reference))
    else:
        report.notes.append("reference encoder skipped and its input set to zero: speaker.encoder is 'joint'")
    if not speaker.x_vectors:
        report.notes.append("x-vectors skipped: speaker.x_vectors is empty")
    elif speaker.x_vectors != X_VECTORS:
        report.notes.append(
            f"input of x-vectors set to zero: speaker.x_vectors is {speaker.x_vectors!r}, not {X_VECTORS!r}"
        )
    elif speaker.x_vector_width != sizes.x_vector_width:
        raise ValueError(
            f"speaker.x_vector_width is {speaker.x_vector_width}, the weights have {sizes.x_vector_width}"
        )
    else:
        columns.append((sizes.token_width + own, x_vector))
    return encoder, columns
