"""The public sibling's weights in our network and back: the DiT of Qwen2.5-Omni's token2wav (arXiv 2503.20215).

It is the same network but for its inputs: one head in sixteen is rotated, a token's vector is repeated over
its frames, the speaker is a reference mel's embedding beside an x-vector, and the null condition is code 0
spoken by silence. All of that is configuration here. It answers with the velocity of the unscaled log-mel.
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
    SPEAKER,
    TABLE,
    Sizes,
    our_encoder_name,
    same_modules,
    their_encoder_name,
)
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale, StreamFlow

COMPONENT = "code2wav_dit_model"

X_VECTORS = "qwen2.5-omni"
"""Name of the encoder behind the sibling's x-vectors."""

SCALE = MelScale(mean=0.0, std=1.0)
HEAD_WIDTH = 64


@dataclass
class WarmStart:
    """What became of foreign weights.

    Attributes:
        loaded: Parameters of ours that now have a foreign value.
        parameters: Parameters of ours.
        notes: What was resized, drawn anew or left out, a sentence each.
    """

    loaded: int
    parameters: int
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.loaded / 1e6:.1f} M of {self.parameters / 1e6:.1f} M parameters loaded"
        return "; ".join([head, *self.notes])


def warm_start(model: StreamFlow, path: Path) -> WarmStart:
    """Fills a model with the sibling's weights from disk, and says what fitted.

    Args:
        model: Of the same width and depth; its layout, frames per token, vocabulary and speaker inputs may
            differ.
        path: The sibling's folder, one of its safetensors files, or a state dict.

    Raises:
        FileNotFoundError: if there is nothing.
        ValueError: if a file is broken, or the weights belong to another architecture.
    """
    state, config = read_qwen(path, COMPONENT)
    # The weights do not say how many heads they are for; without a config they are the released model's.
    heads = config.get("num_attention_heads", Sizes.of(state).width // HEAD_WIDTH)
    if heads != model.dit.config.num_heads:
        raise ValueError(f"{path} has {heads} attention heads, dit.num_heads is {model.dit.config.num_heads}")
    return fill(model, state)


def from_qwen(state_dict: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> StreamFlow:
    """Returns our network with the sibling's weights, of whatever sizes they are.

    Args:
        state_dict: Of its DiT, or of anything that contains it, with or without prefixes.
        config: Its `dit_config`, for what the weights do not say: layout, block size, heads, repeats; the
            released model's by default.

    Raises:
        ValueError: if the weights belong to another architecture.
    """
    state = strip_prefix(state_dict, COMPONENT)
    config = config or {}
    sizes = Sizes.of(state)
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
    """Returns the embeddings [S] of the voices that come with the sibling, by name: its `spk_dict.pt`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no voices, or the model has other speaker inputs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: wanted the sibling's spk_dict.pt")
    voices = {}
    for name, voice in read_torch(path).items():
        if not isinstance(voice, dict) or not {"cond", "ref_mel"} <= voice.keys():
            raise ValueError(f"{path} holds no voice under {name!r}: wanted its x-vector 'cond' and its 'ref_mel'")
        x_vector = voice["cond"].float().view(1, -1)
        voices[name] = model.encoder(voice["ref_mel"].float().view(1, -1, model.encoder.num_bands), x_vector)[0]
    return voices


def to_qwen(model: StreamFlow) -> dict[str, Tensor]:
    """Returns a model's weights as the state dict of the sibling's DiT, without prefix.

    Raises:
        ValueError: if the model can do what the sibling cannot; says which option.
    """
    config, speaker = model.dit.config, model.speaker
    for name, ours, theirs in (
        *_assumptions(model),
        ("dit.null_condition", config.null_condition, "zeros"),
        ("layout.unbounded", model.layout.unbounded, "no"),
        ("speaker.encoder", speaker.encoder, "qwen"),
        ("speaker.x_vectors", speaker.x_vectors, X_VECTORS),
    ):
        if ours != theirs:
            raise ValueError(f"{name} is {ours!r}, the sibling can only have {theirs!r}")
    ours = model.state_dict()
    pairs = same_modules(model.layout.num_layers).items()
    state = {f"{theirs}.{kind}": ours[f"{name}.{kind}"] for theirs, name in pairs for kind in KINDS}
    for i in range(model.layout.num_layers):
        here, there = f"dit.layers.{i}", f"transformer_blocks.{i}"
        for kind in KINDS:
            parts = ours[f"{here}.attention.qkv.{kind}"].chunk(3)
            state |= {f"{there}.attn.to_{x}.{kind}": part for x, part in zip("qkv", parts, strict=True)}
    table = ours["dit.tokens.table.weight"].unflatten(1, (-1, config.token_width))
    if not torch.equal(table, table[:, :1].expand_as(table)):
        raise ValueError("the frames of a token have vectors of their own: train with dit.token_repeat=true")
    state[TABLE] = table[:, 0] * model.dit.tokens.scale
    # Its order: mel, reference embedding, token, x-vector; ours: mel | token, reference embedding, x-vector.
    reference = config.speaker_width - speaker.stored_width
    token, embedding, x_vector = ours["dit.from_condition.weight"].split(
        [config.token_width, reference, speaker.stored_width], dim=1
    )
    state[f"{PROJECTION}.weight"] = torch.cat([ours["dit.from_mel.weight"], embedding, token, x_vector], dim=1)
    state[f"{PROJECTION}.bias"] = ours["dit.from_mel.bias"]
    encoder = {name: value for name, value in ours.items() if name.startswith("encoder.ecapa.")}
    return state | {their_encoder_name(name): value for name, value in encoder.items()}


def fill(model: StreamFlow, state: Mapping[str, Tensor]) -> WarmStart:
    """Copies a state dict of the sibling's DiT, without prefix, into a model as far as it fits.

    Raises:
        ValueError: if the weights belong to another architecture, or the model reads its answer otherwise.
    """
    sizes = Sizes.of(state)
    config = model.dit.config
    for name, ours, theirs in (
        ("layout.num_layers", model.layout.num_layers, sizes.num_layers),
        ("dit.width", config.width, sizes.width),
        ("dit.mlp_ratio", config.mlp_ratio, sizes.inner // sizes.width),
        ("dit.token_width", config.token_width, sizes.token_width),
        ("dit.num_bands", config.num_bands, sizes.num_bands),
        *_assumptions(model),
    ):
        if ours != theirs:
            raise ValueError(f"{name} is {ours}, the weights to start from have {theirs}")
    report = WarmStart(0, sum(p.numel() for p in model.parameters()))
    new = _translated(state, sizes.num_layers)
    if sizes.vocabulary == config.vocabulary:
        new["dit.tokens.table.weight"] = _table(model, state[TABLE])
        how = "shared by" if config.token_repeat else "resized to one for each of"
        report.notes.append(f"a token's vector is {how} its frames, here {config.frames_per_token}")
        if config.null_condition == "learned":
            report.notes.append("the learned null id begins as the sibling's, code 0")
    else:
        report.notes.append(
            f"token embedding drawn anew: its vocabulary is {sizes.vocabulary}, dit.vocabulary {config.vocabulary}"
        )
    encoder, columns = _speaker(model, state, sizes, report)
    new |= encoder
    new["dit.from_mel.weight"] = state[f"{PROJECTION}.weight"][:, : sizes.num_bands]
    new["dit.from_mel.bias"] = state[f"{PROJECTION}.bias"]
    ours = model.state_dict()
    # A fresh projection in ours: zeros, so that the network starts as it was, with no voice.
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
        report.notes.append("the learned null speaker begins as the sibling's, that of silence")
    return report


def _assumptions(model: StreamFlow) -> list[tuple[str, Any, Any]]:
    """What the sibling's weights take for granted: option, ours, theirs."""
    config = model.dit.config
    rope_heads = config.num_heads if config.rope_heads is None else config.rope_heads
    return [
        ("dit.rope_heads", rope_heads, 1),
        ("predict", model.predict, "velocity"),
        ("scale", (model.scale.mean, model.scale.std), (SCALE.mean, SCALE.std)),
    ]


def _translated(state: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """The weights that are the same in both networks, under our names."""
    pairs = same_modules(num_layers).items()
    new = {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for theirs, ours in pairs for kind in KINDS}
    for i in range(num_layers):
        here, there = f"dit.layers.{i}", f"transformer_blocks.{i}"
        for kind in KINDS:
            new[f"{here}.attention.qkv.{kind}"] = torch.cat([state[f"{there}.attn.to_{x}.{kind}"] for x in "qkv"])
    return new


def _table(model: StreamFlow, table: Tensor) -> Tensor:
    """The token embedding [V + 1, D or r D]; our null id begins as code 0 unless code 0 is the null."""
    config = model.dit.config
    if config.null_condition == "learned":
        table = torch.cat([table[: config.vocabulary], table[:1]])
    return (table.float() / model.dit.tokens.scale).repeat(1, 1 if config.token_repeat else config.frames_per_token)


def _speaker(
    model: StreamFlow, state: Mapping[str, Tensor], sizes: Sizes, report: WarmStart
) -> tuple[dict[str, Tensor], list[tuple[int, Tensor]]]:
    """Returns the encoder's weights under our names, and the columns of the condition's projection that fit."""
    config, speaker = model.dit.config, model.speaker
    weight = state[f"{PROJECTION}.weight"]
    widths = [sizes.num_bands, sizes.reference_width, sizes.token_width, sizes.x_vector_width]
    _, reference, token, x_vector = weight.split(widths, dim=1)
    columns = [(0, token)]
    encoder: dict[str, Tensor] = {}
    own = config.speaker_width - speaker.stored_width
    if speaker.encoder == "qwen":
        for name, ours, theirs in (
            ("speaker.channels", speaker.channels, sizes.speaker_channels),
            ("dit.speaker_width without x-vectors", own, sizes.reference_width),
        ):
            if ours != theirs:
                raise ValueError(f"{name} is {ours}, the weights to start from have {theirs}")
        encoder = {our_encoder_name(name): v for name, v in state.items() if name.startswith(SPEAKER)}
        columns.append((sizes.token_width, reference))
    else:
        report.notes.append("reference encoder left out and its input set to zero: speaker.encoder is 'joint'")
    if not speaker.x_vectors:
        report.notes.append("x-vectors left out: speaker.x_vectors is empty")
    elif speaker.x_vectors != X_VECTORS:
        report.notes.append(
            f"input of x-vectors set to zero: those of {speaker.x_vectors!r} are not those of {X_VECTORS!r}"
        )
    elif speaker.x_vector_width != sizes.x_vector_width:
        raise ValueError(
            f"speaker.x_vector_width is {speaker.x_vector_width}, the weights have {sizes.x_vector_width}"
        )
    else:
        columns.append((sizes.token_width + own, x_vector))
    return encoder, columns
