"""A small token2wav DiT of Qwen2.5-Omni, as transformers builds it, in memory and on disk."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.toys.networks import randomize_weights

transformers = pytest.importorskip("transformers")
omni = transformers.models.qwen2_5_omni

TOKEN2WAV_SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 16,
    "emb_dim": 24,
    "num_embeds": 40,
    "enc_dim": 12,
    "enc_emb_dim": 20,
    "enc_channels": [16, 16, 16, 16, 48],
    "enc_attention_channels": 4,
    "enc_se_channels": 4,
    "look_backward_layers": [0, 2],
    "look_ahead_layers": [1],
    "attn_implementation": "sdpa",
}


def small_token2wav(**change: Any) -> Any:
    """Returns a small token2wav DiT whose output depends on all of its weights."""
    torch.manual_seed(0)
    config = omni.configuration_qwen2_5_omni.Qwen2_5OmniDiTConfig(**(TOKEN2WAV_SIZES | change))
    return randomize_weights(omni.modeling_qwen2_5_omni.Qwen2_5OmniToken2WavDiTModel(config))


def save_token2wav(theirs: Any, folder: Path) -> Path:
    """Writes token2wav as it is distributed: safetensors and a config, with other components beside it."""
    folder.mkdir()
    state = {f"token2wav.code2wav_dit_model.{name}": value for name, value in theirs.state_dict().items()}
    save_file(state | {"talker.weight": torch.zeros(1)}, folder / "model.safetensors")
    config = {"token2wav_config": {"dit_config": theirs.config.to_dict()}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
