"""S3 tokens of CosyVoice 2: 25 per second, 6,561 codes, computed with weights that the user provides.

Requires the package `s3tokenizer` (`pip install 'sf-lightning[s3]'`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sf_lightning.audio.wave import Wave
from sf_lightning.files.digest import file_digest
from sf_lightning.tokens.base import TokenizerSpec, Tokens

MODEL = "speech_tokenizer_v2_25hz"
VOCABULARY, FRAMES_PER_TOKEN = 6561, 4
HOP_LENGTH = 160
MIN_SAMPLES = 201
"""Shorter pieces are padded, because the mel reflects 200 samples at its edges; they remain one frame."""
MAX_SAMPLES = 30 * 16000
"""Longer waves are cut, because the package's own windows lose tokens beyond 30 s (xingchensong/S3Tokenizer#53)."""


class S3Tokenizer:
    """Encodes waves at 16 kHz as S3 tokens.

    Args:
        path: Path of `speech_tokenizer_v2.onnx`, or of a `.pt` file of the package `s3tokenizer`.
        device: Device of the network.

    Raises:
        ValueError: if the file does not have these weights.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        from s3tokenizer.model_v2 import S3TokenizerV2

        # Not `s3tokenizer.load_model`, which chooses a class by substrings of the path.
        self.path, self.device = path, device
        self.model = S3TokenizerV2(MODEL)
        try:
            load = self.model.init_from_onnx if path.suffix == ".onnx" else self.model.init_from_pt
            load(str(path))
        except Exception as error:
            raise ValueError(f"tokenizer {path} does not have weights of {MODEL} ({error})") from error
        self.model.to(device).eval()
        self.spec = TokenizerSpec("s3", VOCABULARY, FRAMES_PER_TOKEN, file_digest(path, 16))

    def __reduce__(self) -> tuple:
        # Pickled as its path: another process loads the weights itself.
        return S3Tokenizer, (self.path, self.device)

    @torch.inference_mode()
    def encode(self, waves: Sequence[Wave]) -> list[Tokens]:
        """Returns the tokens [L] of each wave [N], L = ceil(ceil(N // 160 / 2) / 2).

        Waves are padded to one batch and masked, so that each has the tokens that it has alone.
        """
        from s3tokenizer import log_mel_spectrogram
        from s3tokenizer.utils import padding

        pieces = [torch.from_numpy(piece) for wave in waves for piece in _pieces(wave)]
        if not pieces:
            return [np.zeros(0, np.int64) for _ in waves]
        mels, lengths = padding([log_mel_spectrogram(piece) for piece in pieces])
        codes, counts = self.model.quantize(mels.to(self.device), lengths.to(self.device))
        found = iter(code[:count].cpu().numpy().astype(np.int64) for code, count in zip(codes, counts, strict=True))
        return [np.concatenate([next(found) for _ in _pieces(wave)] or [np.zeros(0, np.int64)]) for wave in waves]


def _pieces(wave: Wave) -> list[Wave]:
    """Returns pieces of at most `MAX_SAMPLES`; the last one is dropped if it is shorter than a frame, or padded."""
    pieces = [wave[start : start + MAX_SAMPLES] for start in range(0, len(wave), MAX_SAMPLES)]
    pieces = [piece for piece in pieces if len(piece) >= HOP_LENGTH]
    return [np.pad(piece, (0, max(0, MIN_SAMPLES - len(piece)))) for piece in pieces]
