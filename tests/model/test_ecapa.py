"""SpeechBrain's ECAPA from a folder: its own embeddings, untouched by who else is in the batch."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Classifier

from sf_lightning.model.ecapa import PretrainedECAPA
from tests.toys.audio import synthetic_voice

HYPERPARAMS = """
n_mels: 80
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: false
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: [16, 16, 16, 16, 48]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 8
    lin_neurons: 24
classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 24
    out_neurons: 3
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>
label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
        classifier: !ref <classifier>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder with random weights, in SpeechBrain's own format."""
    folder = tmp_path_factory.mktemp("ecapa")
    (folder / "hyperparams.yaml").write_text(HYPERPARAMS)
    torch.manual_seed(0)
    model = ECAPA_TDNN(80, channels=[16, 16, 16, 16, 48], attention_channels=8, lin_neurons=24)
    torch.save(model.state_dict(), folder / "embedding_model.ckpt")
    torch.save(Classifier(24, out_neurons=3).state_dict(), folder / "classifier.ckpt")
    return folder


def test_embeddings_are_of_the_weights_in_the_folder_and_of_each_clip_alone(folder: Path) -> None:
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


def test_another_training_has_another_name_and_a_folder_without_one_is_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.manual_seed(1)
    model = ECAPA_TDNN(80, channels=[16, 16, 16, 16, 48], attention_channels=8, lin_neurons=24)
    torch.save(model.state_dict(), tmp_path / "embedding_model.ckpt")
    assert PretrainedECAPA(str(tmp_path)).name != PretrainedECAPA(str(folder)).name
    (tmp_path / "hyperparams.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"no hyperparams.yaml in"):
        PretrainedECAPA(str(tmp_path))
