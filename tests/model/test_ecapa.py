"""SpeechBrain's ECAPA-TDNN from a folder: embeddings do not depend on the batch."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.utils.fetching import LocalStrategy

from sf_lightning.files.torch_files import weights_digest
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
    mine = encoder.encoder.state_dict()
    assert all(torch.equal(mine[name], weight) for name, weight in weights.items())
    again = pickle.loads(pickle.dumps(encoder))
    np.testing.assert_allclose(again.encode(waves[:1])[0], together[0], atol=1e-4 * np.abs(together[0]).max())


def test_other_weights_have_another_name_and_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    write_ecapa(tmp_path, seed=1)
    assert PretrainedECAPA(str(tmp_path)).name != PretrainedECAPA(str(folder)).name
    (tmp_path / "embedding_model.ckpt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no embedding_model.ckpt in"):
        PretrainedECAPA(str(tmp_path))


def test_embeddings_and_name_are_those_of_speechbrain(folder: Path) -> None:
    encoder, wave = PretrainedECAPA(str(folder)), synthetic_voice(6.0)
    theirs = EncoderClassifier.from_hparams(str(folder), savedir=str(folder), local_strategy=LocalStrategy.NO_LINK)
    theirs.eval()
    with torch.inference_mode():
        expected = theirs.encode_batch(torch.from_numpy(wave)[None])[0, 0].numpy()
    np.testing.assert_allclose(encoder.encode([wave])[0], expected, atol=1e-4 * np.abs(expected).max())
    weights = theirs.mods.embedding_model.state_dict()
    assert encoder.name == f"ecapa-{weights_digest(dict(sorted(weights.items())), length=8)}"


def test_no_code_in_hyperparams_yaml_runs_and_other_architectures_are_refused(tmp_path: Path) -> None:
    write_ecapa(tmp_path)
    (tmp_path / "hyperparams.yaml").write_text(
        f"x: !apply:pathlib.Path.touch [!apply:pathlib.Path [{tmp_path}/ran]]"
    )
    assert PretrainedECAPA(str(tmp_path)).width == 24 and not (tmp_path / "ran").exists()
    for weights in ({"x": torch.zeros(1)}, {"blocks.0.conv.conv.weight": 3}, [1]):
        torch.save(weights, tmp_path / "embedding_model.ckpt")
        with pytest.raises(ValueError, match=r"embedding_model.ckpt (is not an ECAPA-TDNN|holds a list)"):
            PretrainedECAPA(str(tmp_path))
