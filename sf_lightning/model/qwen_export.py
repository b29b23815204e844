"""Converts the weights of our network to those of Qwen2.5-Omni token2wav's DiT, which transformers can load."""

import torch
from torch import Tensor

from sf_lightning.model.qwen_names import (
    KINDS,
    PROJECTION,
    TABLE,
    X_VECTORS,
    fixed_settings,
    require_equal,
    same_modules,
    their_encoder_name,
)
from sf_lightning.model.streamflow import StreamFlow


def to_qwen(model: StreamFlow) -> dict[str, Tensor]:
    """Returns a model's weights as a state dict of token2wav's DiT, without prefix.

    Raises:
        ValueError: with the option, if the model has a setting that token2wav does not have.
    """
    config, speaker = model.dit.config, model.speaker
    require_equal(
        "token2wav requires",
        *fixed_settings(model),
        ("dit.null_condition", config.null_condition, "zeros"),
        ("layout.unbounded", model.layout.unbounded, "no"),
        ("speaker.encoder", speaker.encoder, "qwen"),
        ("speaker.x_vectors", speaker.x_vectors, X_VECTORS),
    )
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
        raise ValueError(
            "the frames of a token have different embeddings, token2wav's share one: train with "
            "--model.dit.token_repeat=true"
        )
    state[TABLE] = table[:, 0] * model.dit.tokens.scale
    # Inputs in token2wav: mel, reference embedding, token, x-vector; in ours: mel | token, reference, x-vector.
    reference = config.speaker_width - speaker.stored_width
    token, embedding, x_vector = ours["dit.from_condition.weight"].split(
        [config.token_width, reference, speaker.stored_width], dim=1
    )
    state[f"{PROJECTION}.weight"] = torch.cat([ours["dit.from_mel.weight"], embedding, token, x_vector], dim=1)
    state[f"{PROJECTION}.bias"] = ours["dit.from_mel.bias"]
    encoder = {name: value for name, value in ours.items() if name.startswith("encoder.ecapa.")}
    return state | {their_encoder_name(name): value for name, value in encoder.items()}
