"""SpeechBrain's pretrained ECAPA-TDNN: x-vectors that are computed once and stored in shards.

Only the weights are read. SpeechBrain's own loader runs the code that `hyperparams.yaml` names, so the architecture
is that of speechbrain/spkrec-ecapa-voxceleb, with the widths of the weights.

All crops have one length, so that an embedding depends on its own clip alone: padding would change it by several
percent, even with the true lengths given.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from torch import Tensor

from sf_lightning.audio.wave import Wave
from sf_lightning.files.hub import local_path
from sf_lightning.files.identify import ECAPA_WEIGHTS as WEIGHTS
from sf_lightning.files.torch_files import read_torch, weight_mismatches, weights_digest

NUM_BANDS = 80
"""Mel bands of its features."""

CROP_SECONDS = 6.0
"""Length of the crops in seconds, from the middle of a clip; a shorter clip is repeated."""


class PretrainedECAPA:
    """Encodes waves at 16 kHz to x-vectors.

    Args:
        source: Folder with `embedding_model.ckpt`, the weights of SpeechBrain's ECAPA-TDNN; or a repository of the
            Hugging Face hub, such as speechbrain/spkrec-ecapa-voxceleb.
        device: Device of the encoder.

    Attributes:
        name: "ecapa-" and a digest of the weights: embeddings of different weights are not comparable.
        width: Width of an x-vector.

    Raises:
        FileNotFoundError: if there are no such weights.
        ValueError: if they are damaged, or of another architecture.
    """

    def __init__(self, source: str, device: str = "cpu") -> None:
        from speechbrain.lobes.features import Fbank

        path = local_path(source) / WEIGHTS
        if not path.is_file():
            raise FileNotFoundError(f"--speaker_encoder: no {WEIGHTS} in {path.parent}: expected an ECAPA-TDNN")
        self.source, self.device = source, device
        weights = read_torch(path)
        self.features, self.encoder = Fbank(n_mels=NUM_BANDS).to(device), _network(path, weights).to(device).eval()
        self.name = f"ecapa-{weights_digest(dict(sorted(weights.items())), length=8)}"
        self.width = len(self.encode([np.ones(16000, np.float32)])[0])

    def __reduce__(self) -> tuple:
        # Another process loads the weights from the source rather than receive them.
        return PretrainedECAPA, (self.source, self.device)

    @torch.inference_mode()
    def encode(self, waves: Sequence[Wave]) -> list[NDArray[np.float32]]:
        """Returns the x-vector [width] of each wave [N]."""
        samples = round(16000 * CROP_SECONDS)
        middles = [wave[max(0, (len(wave) - samples) // 2) :][:samples] for wave in waves]
        crops = torch.from_numpy(np.stack([np.resize(middle, samples) for middle in middles]))
        features = self.features(crops.to(self.device))
        return list(self.encoder(features - features.mean(1, keepdim=True))[:, 0].float().cpu().numpy())


def _network(path: Path, weights: Mapping[str, Tensor]) -> ECAPA_TDNN:
    """Returns the network of weights, whose widths follow from their shapes.

    Raises:
        ValueError: if they are of another architecture.
    """
    try:
        channels, _, _ = weights["blocks.0.conv.conv.weight"].shape
        parts = [
            name
            for name in weights
            if re.fullmatch(r"blocks\.1\.res2net_block\.blocks\.\d+\.conv\.conv\.weight", name)
        ]
        sizes = {
            "channels": [channels] * 4 + [3 * channels],
            "attention_channels": len(weights["asp.tdnn.conv.conv.weight"]),
            "se_channels": len(weights["blocks.1.se_block.conv1.conv.weight"]),
            "res2net_scale": len(parts) + 1,
            "lin_neurons": len(weights["fc.conv.weight"]),
        }
        with torch.device("meta"):  # compares sizes before it allocates any
            mismatches = weight_mismatches(weights, ECAPA_TDNN(NUM_BANDS, **sizes).state_dict())
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError, AssertionError) as error:
        raise ValueError(f"{path} is not an ECAPA-TDNN ({error!r:.100}): only that architecture is read") from error
    if mismatches:
        raise ValueError(f"{path} is not an ECAPA-TDNN: {mismatches[0]}; only that architecture is read")
    network = ECAPA_TDNN(NUM_BANDS, **sizes)
    network.load_state_dict(weights)
    return network
