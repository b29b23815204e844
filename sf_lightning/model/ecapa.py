"""SpeechBrain's pretrained ECAPA-TDNN: x-vectors that are computed once and stored in shards.

All crops have one length, so that an embedding depends on its own clip alone: padding would change it by several
percent, even with the true lengths given.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sf_lightning.audio.wave import Wave
from sf_lightning.files.torch_files import weights_digest

CROP_SECONDS = 6.0
"""Length of the crops in seconds, from the middle of a clip; a shorter clip is repeated."""


class PretrainedECAPA:
    """Encodes waves at 16 kHz to x-vectors.

    Args:
        source: Folder with SpeechBrain's `hyperparams.yaml` and checkpoints, or a repository of the Hugging Face
            hub, such as speechbrain/spkrec-ecapa-voxceleb.
        device: Device of the encoder.

    Attributes:
        name: "ecapa-" and a digest of the weights: embeddings of different weights are not comparable.
        width: Width of an x-vector.

    Raises:
        FileNotFoundError: if a folder has no `hyperparams.yaml`.
    """

    def __init__(self, source: str, device: str = "cpu") -> None:
        from speechbrain.inference.classifiers import EncoderClassifier
        from speechbrain.utils.fetching import LocalStrategy

        folder = Path(source)
        if folder.exists() and not (folder / "hyperparams.yaml").is_file():
            raise FileNotFoundError(f"--speaker_encoder: no hyperparams.yaml in {folder}")
        self.source, self.device = source, device
        self.encoder = EncoderClassifier.from_hparams(
            source,
            savedir=source if folder.exists() else None,
            run_opts={"device": device},
            local_strategy=LocalStrategy.NO_LINK if folder.exists() else LocalStrategy.SYMLINK,
        )
        self.encoder.eval()
        weights = self.encoder.mods.embedding_model.state_dict()
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
        return list(self.encoder.encode_batch(crops.to(self.device))[:, 0].float().cpu().numpy())
