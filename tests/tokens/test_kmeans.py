"""K-means tokens: 25 per second, independent of level, the same after reloading."""

from pathlib import Path

import numpy as np
import pytest

from sf_lightning.tokens.kmeans import KMeansTokenizer
from sf_lightning.tokens.load import load_tokenizer
from tests.toys.audio import synthetic_voice


@pytest.fixture(scope="module")
def tokenizer() -> KMeansTokenizer:
    """Returns a tokenizer of fifty codes, fitted on ten seconds."""
    return KMeansTokenizer.fit((synthetic_voice(2.0, 90 + 20 * i, seed=i) for i in range(5)), 50)


def test_there_is_one_token_for_every_four_whole_frames(tokenizer: KMeansTokenizer) -> None:
    for samples in (641, 16000, 16000 + 639, 16000 + 640):
        tokens = tokenizer.encode([synthetic_voice(2.0)[:samples]])[0]
        assert len(tokens) == samples // 640
        assert tokens.dtype == np.int64 and 0 <= tokens.min() <= tokens.max() < 50


def test_level_changes_no_token_of_clear_speech(tokenizer: KMeansTokenizer) -> None:
    loud, quiet = tokenizer.encode([synthetic_voice(2.0, seed=1), 0.25 * synthetic_voice(2.0, seed=1)])
    assert (loud == quiet).mean() > 0.9


def test_different_speech_has_different_tokens(tokenizer: KMeansTokenizer) -> None:
    tokens = tokenizer.encode([synthetic_voice(2.0, 100, seed=1)])[0]
    assert len(set(tokens.tolist())) > 5


def test_a_saved_tokenizer_is_the_same(tokenizer: KMeansTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "k.npz")
    again = load_tokenizer(tmp_path / "k.npz")
    assert again.spec == tokenizer.spec
    assert np.array_equal(again.encode([synthetic_voice(1.0)])[0], tokenizer.encode([synthetic_voice(1.0)])[0])


def test_two_fits_have_two_digests(tokenizer: KMeansTokenizer) -> None:
    other = KMeansTokenizer.fit([synthetic_voice(3.0, seed=9)], 50)
    assert other.spec.name == tokenizer.spec.name and other.spec.digest != tokenizer.spec.digest


def test_a_file_that_is_not_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    for name in ("bad.npz", "other.npz"):
        with pytest.raises(ValueError, match="is not a k-means tokenizer"):
            load_tokenizer(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_tokenizer(tmp_path / "none.npz")
    (tmp_path / "a.bin").touch()
    with pytest.raises(ValueError, match=r"expected suffix .npz"):
        load_tokenizer(tmp_path / "a.bin")


def test_more_codes_than_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="25 tokens of speech for 50 codes: lower --vocabulary"):
        KMeansTokenizer.fit([synthetic_voice(1.0)], 50)
