"""S3 tokens (CosyVoice 2): 25 a second, 6,561 codes, from weights that the user has.

Needs the package `s3tokenizer` (`pip install 'sf-lightning[s3]'`).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sf_lightning.audio.wave import Wave
from sf_lightning.tokens.base import TokenizerSpec, Tokens

MODEL = "speech_tokenizer_v2_25hz"
VOCABULARY, FRAMES_PER_TOKEN = 6561, 4
HOP_LENGTH = 160
MIN_SAMPLES = 201
"""Shorter pieces are padded: the edges of the mel are a reflection of 200 samples. It is still one frame."""
MAX_SAMPLES = 30 * 16000
"""Longer waves are cut: beyond 30 s the package's own windows lose tokens (xingchensong/S3Tokenizer#53)."""


class S3Tokenizer:
    """Turns waves at 16 kHz into S3 tokens.

    Args:
        path: `speech_tokenizer_v2.onnx`, or a `.pt` of the package's own.
        device: Where it runs.

    Raises:
        ValueError: if the file holds no such weights.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        from s3tokenizer.model_v2 import S3TokenizerV2

        # Not `s3tokenizer.load_model`, which picks a class by what it finds in the words of the path.
        self.path, self.device = path, device
        self.model = S3TokenizerV2(MODEL)
        try:
            load = self.model.init_from_onnx if path.suffix == ".onnx" else self.model.init_from_pt
            load(str(path))
        except Exception as error:
            raise ValueError(f"tokenizer: {path} holds no weights of {MODEL} ({error})") from error
        self.model.to(device).eval()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        self.spec = TokenizerSpec("s3", VOCABULARY, FRAMES_PER_TOKEN, digest)

    def __reduce__(self) -> tuple:
        # To another process goes where it is loaded from, not its weights.
        return S3Tokenizer, (self.path, self.device)

    @torch.inference_mode()
    def encode(self, waves: Sequence[Wave]) -> list[Tokens]:
        """Returns tokens [L] of each wave [N], ceil(ceil(N // 160 / 2) / 2) of them.

        Waves go through together, padded, but masked where they are: alone each would give the same.
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
    """Cuts a wave; what is left behind whole pieces may be too short for a frame, or for the mel's padding."""
    pieces = [wave[start : start + MAX_SAMPLES] for start in range(0, len(wave), MAX_SAMPLES)]
    pieces = [piece for piece in pieces if len(piece) >= HOP_LENGTH]
    return [np.pad(piece, (0, max(0, MIN_SAMPLES - len(piece)))) for piece in pieces]
