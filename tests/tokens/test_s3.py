"""S3 tokens: their number, independence of the batch, waves of any length."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from sf_lightning.tokens.base import Tokenizer
from sf_lightning.tokens.load import load_tokenizer
from tests.toys.audio import synthetic_voice

s3tokenizer = pytest.importorskip("s3tokenizer")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes random weights in the package's format, in a folder whose name would mislead its `load_model`."""
    from s3tokenizer.model_v2 import S3TokenizerV2

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("v3") / "s3.pt"
    torch.save(S3TokenizerV2("speech_tokenizer_v2_25hz").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def s3(path: Path) -> Tokenizer:
    """Returns the tokenizer."""
    return load_tokenizer(path)


@pytest.mark.parametrize("samples", [16000, 16159, 16160, 16480, 16640, 8001, 160, 200, 30 * 16000 + 5])
def test_the_number_of_tokens_follows_the_formula(s3: Tokenizer, samples: int) -> None:
    wave = np.resize(synthetic_voice(2.0), samples)
    (tokens,) = s3.encode([wave])

    def expected_tokens(count: int) -> int:
        return math.ceil(math.ceil(count // 160 / 2) / 2)

    pieces = [min(480000, samples - start) for start in range(0, samples, 480000)]
    assert len(tokens) == sum(expected_tokens(piece) for piece in pieces)
    assert abs(4 * len(tokens) - samples // 160) <= 3  # what `sample` trims or pads
    assert tokens.dtype == np.int64 and 0 <= tokens.min() <= tokens.max() < s3.spec.vocabulary == 6561


def test_tokens_do_not_depend_on_the_batch(s3: Tokenizer) -> None:
    waves = [synthetic_voice(seconds, seed=i) for i, seconds in enumerate((0.7, 2.0, 1.3))]
    for wave, together in zip(waves, s3.encode(waves), strict=True):
        (alone,) = s3.encode([wave])
        assert len(set(alone.tolist())) > 3
        # Codes are rounded, so that a sum in another order may change one.
        assert np.mean(alone == together) > 0.97


def test_it_is_pickled_as_its_path(s3: Tokenizer) -> None:
    data = pickle.dumps(s3)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again.spec == s3.spec and s3.spec.name == "s3"
    assert np.array_equal(again.encode([synthetic_voice(0.5)])[0], s3.encode([synthetic_voice(0.5)])[0])


def test_other_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt does not have weights of speech_tokenizer_v2_25hz"):
        load_tokenizer(tmp_path / "a.pt")
    (tmp_path / "b.onnx").write_bytes(b"no onnx")
    with pytest.raises(ValueError, match=r"b.onnx does not have weights"):
        load_tokenizer(tmp_path / "b.onnx")
