"""SpeechBrain's ECAPA-TDNN from a folder: embeddings do not depend on the batch."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from sf_lightning.model.ecapa import PretrainedECAPA
from tests.toys.audio import synthetic_voice
from tests.toys.ecapa import write_ecapa


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a small encoder with random weights."""
    return write_ecapa(tmp_path_factory.mktemp("ecapa"))


def test_embeddings_depend_on_the_weights_in_the_folder_and_on_each_clip_alone(folder: Path) -> None:
    encoder = PretrainedECAPA(str(folder))
    assert encoder.width == 24 and encoder.name.startswith("ecapa-")
    waves = [synthetic_voice(seconds, seed=i) for i, seconds in enumerate((1.0, 7.5, 3.0))]
    together = encoder.encode(waves)
    for wave, embedding in zip(waves, together, strict=True):
        np.testing.assert_allclose(encoder.encode([wave])[0], embedding, atol=1e-4 * np.abs(embedding).max())
        assert embedding.shape == (24,) and np.isfinite(embedding).all()
    weights = torch.load(folder / "embedding_model.ckpt")
    mine = encoder.encoder.mods.embedding_model.state_dict()
    assert all(torch.equal(mine[name], weight) for name, weight in weights.items())
    again = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_allclose(again.encode(waves[:1])[0], together[0], atol=1e-4 * np.abs(together[0]).max())


def test_other_weights_have_another_name_and_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    write_ecapa(tmp_path, seed=1)
    assert PretrainedECAPA(str(tmp_path)).name != PretrainedECAPA(str(folder)).name
    (tmp_path / "hyperparams.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"no hyperparams.yaml in"):
        PretrainedECAPA(str(tmp_path))
