"""Qwen2.5-Omni's BigVGAN: transformers' own waves from every form of file, at 24 kHz wherever waves go."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch
from bigvgan import BigVGAN
from bigvgan.env import AttrDict
from safetensors.torch import save_file
from torch import Tensor

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.data.lanes import DrawnClip
from sf_lightning.data.sample import Clip
from sf_lightning.evaluation.decoding import ClipEvaluator, HeldOutClip
from sf_lightning.evaluation.scores import ClipScorer
from sf_lightning.metrics.speech import PERCEPTUAL
from sf_lightning.model.layout import Layout
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.latency import measure_latency
from sf_lightning.streaming.state import Chunk, DecodeConfig
from sf_lightning.training.callbacks.streaming_validation import StreamingValidation
from sf_lightning.vocoder.bigvgan import BigVGANVocoder
from sf_lightning.vocoder.config import VocoderConfig
from sf_lightning.vocoder.griffin_lim import GriffinLim
from sf_lightning.vocoder.qwen import FIXED, SIZES, decibels, load_qwen
from tests.toys.audio import synthetic_voice
from tests.toys.networks import SMALL_DIT, small_model

# The released rates and kernels; fewer channels and blocks.
SMALL_SIZES = {
    "upsample_initial_channel": 64,
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
}
PREFIX = "token2wav.code2wav_bigvgan_model."


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Runs on one thread: for convolutions this small, several threads on busy cores are slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def mel() -> Tensor:
    """Returns a second of log-mel [1, 100, 80] with silent and loud frames."""
    mel = MelSpectrogram(MelConfig())(torch.from_numpy(synthetic_voice(1.0))[None])
    mel[:, 40:50] = np.log(1e-5)
    mel[:, 50:55] += 4
    return mel


@pytest.fixture(scope="module")
def state(mel: Tensor) -> dict[str, Tensor]:
    """Returns weights under the names of the released checkpoint; their output is loud but not clamped."""
    generator = BigVGAN(AttrDict(FIXED | SIZES | SMALL_SIZES | {"num_mels": 80}))
    generator.remove_weight_norm()
    random = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for parameter in generator.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_(scale * torch.randn(parameter.shape, generator=random))
        generator.conv_post.weight.mul_(0.01)
        generator.conv_post.weight.mul_(0.7 / generator(decibels(mel).transpose(1, 2)).abs().max())
    return {name: parameter.detach().clone() for name, parameter in generator.named_parameters()}


def write_config(folder: Path, **change: object) -> None:
    """Writes the `config.json` of Qwen2.5-Omni with these sizes."""
    section = {"mel_dim": 80, "model_type": "qwen2_5_omni_bigvgan", **SMALL_SIZES, **change}
    (folder / "config.json").write_text(json.dumps({"token2wav_config": {"bigvgan_config": section}}))


def add_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors with a prefix before their names."""
    return {prefix + name: tensor for name, tensor in state.items()}


def save_as(form: str, folder: Path, state: dict[str, Tensor]) -> Path:
    """Saves the weights in one of the supported forms, and returns the path to load."""
    write_config(folder)
    if form == "shards":  # the first shard, which holds no weights of the vocoder, is missing
        named = list(add_prefix(PREFIX, state).items())
        shards = {"model-00002-of-00003.safetensors": dict(named[::2]), "model-00003-of-00003.safetensors": {}}
        shards["model-00003-of-00003.safetensors"] = dict(named[1::2]) | {"talker.bias": torch.ones(1)}
        weight_map = {"thinker.embed.weight": "model-00001-of-00003.safetensors"}
        for name, content in shards.items():
            save_file(content, folder / name)
            weight_map |= dict.fromkeys(content, name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return folder
    if form.startswith("safetensors"):
        save_file(add_prefix(PREFIX, state), folder / "model.safetensors")
        return folder if form == "safetensors folder" else folder / "model.safetensors"
    torch.save(add_prefix(form, state), folder / "vocoder.pt")
    return folder / "vocoder.pt"


@pytest.fixture(scope="module")
def vocoder(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> BigVGANVocoder:
    """Returns the small vocoder."""
    return load_qwen(save_as("safetensors", tmp_path_factory.mktemp("qwen"), state), MelConfig())


@torch.inference_mode()
@pytest.mark.parametrize(
    "form", ["shards", "safetensors folder", "safetensors", PREFIX, "code2wav_bigvgan_model.", ""]
)
def test_the_wave_is_that_of_transformers_to_1e_5(
    state: dict[str, Tensor], mel: Tensor, tmp_path: Path, form: str
) -> None:
    pytest.importorskip("transformers")
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniBigVGANConfig
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavBigVGANModel

    theirs = Qwen2_5OmniToken2WavBigVGANModel(Qwen2_5OmniBigVGANConfig(**SMALL_SIZES)).eval()  # type: ignore[arg-type]
    theirs.load_state_dict(state)
    expected = theirs(mel.transpose(1, 2))
    assert expected.std() > 0.05 and expected.abs().max() < 0.99
    ours = VocoderConfig(checkpoint=str(save_as(form, tmp_path, state))).make(MelConfig())
    torch.testing.assert_close(ours.decode(mel)[0], expected, atol=1e-5, rtol=0)


def test_sizes_are_those_of_the_released_model_unless_a_config_has_others(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniBigVGANConfig

    assert json.loads(json.dumps(SIZES)) == {
        name: json.loads(json.dumps(getattr(Qwen2_5OmniBigVGANConfig(), name))) for name in SIZES
    }
    monkeypatch.setitem(SIZES, "upsample_initial_channel", 128)  # 1536 channels take seconds to initialize
    torch.save(state, tmp_path / "vocoder.pt")
    message = r"the released checkpoint \(there is no bigvgan_config\): conv_pre.bias is \[64\], expected"
    with pytest.raises(ValueError, match=message):
        load_qwen(tmp_path / "vocoder.pt", MelConfig())


def test_the_input_of_the_generator_is_decibels_scaled_to_minus_1_to_1() -> None:
    # 0 dB - 20 is 20 / 115 below the top; -95 dB - 20 is the bottom; values beyond are clamped.
    amplitudes = torch.tensor([10.0, 1e3, 1.0, 10 ** (-95 / 20), 1e-5])
    expected = torch.tensor([1.0, 1.0, 1 - 40 / 115, -1.0, -1.0])
    torch.testing.assert_close(decibels(amplitudes.log()), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_filters_among_the_weights_are_ignored(
    vocoder: BigVGANVocoder, state: dict[str, Tensor], mel: Tensor, tmp_path: Path
) -> None:
    filters = {
        f"activation_post.{direction}sample.filter": torch.full((1, 1, 12), 9.0) for direction in ("up", "down")
    }
    path = save_as("", tmp_path, state | filters)
    assert torch.equal(load_qwen(path, MelConfig()).decode(mel), vocoder.decode(mel))


@torch.inference_mode()
def test_a_frame_of_10_ms_is_240_samples(vocoder: BigVGANVocoder) -> None:
    assert (vocoder.sample_rate, vocoder.hop) == (24000, 240)
    for frames in (1, 7, 24):
        assert vocoder.decode(torch.zeros(2, frames, 80)).shape == (2, frames * 240)


@torch.inference_mode()
def test_a_frame_beyond_the_context_changes_no_sample_and_one_within_does(vocoder: BigVGANVocoder) -> None:
    reach = vocoder.left
    mel = torch.randn(1, 4 * reach, 80, generator=torch.Generator().manual_seed(0)) - 4
    before = vocoder.decode(mel)
    middle = 2 * reach
    mel[:, middle] += 5.0
    changed = (vocoder.decode(mel) - before).abs()[0].view(-1, 240).amax(1) > 0
    frames = changed.nonzero()[:, 0]
    assert middle - reach <= frames.min() and frames.max() <= middle + reach
    assert frames.min() < middle - reach // 2  # the bound is tight to a factor of two


@torch.inference_mode()
def test_a_stream_with_context_equals_the_whole(vocoder: BigVGANVocoder, mel: Tensor) -> None:
    whole = vocoder.decode(mel)
    for start in range(0, 100, 20):
        first = max(0, start - vocoder.left)
        chunk = mel[:, first : start + 20 + vocoder.right]
        wave = vocoder.extend(chunk, whole[:, first * 240 : start * 240], 20)
        torch.testing.assert_close(wave, whole[:, start * 240 : (start + 20) * 240], atol=1e-4, rtol=0)


def test_a_stream_is_24_khz_and_its_real_time_factor_counts_its_seconds(vocoder: BigVGANVocoder) -> None:
    decoder = StreamingDecoder(small_model(Layout(4, 24, (0, 2), (1,))), vocoder, DecodeConfig(steps=2))
    tokens = torch.randint(0, SMALL_DIT.vocabulary, (20,), generator=torch.Generator().manual_seed(0))
    stream = decoder.open()
    wave = torch.cat([stream.push(tokens), stream.flush()])
    assert len(wave) == 20 * 960  # 40 ms per token
    assert len(decoder.decode_offline([tokens], [None])[0].wave) == 20 * 960
    assert len(stream.state.vocoder.wave) == len(stream.state.vocoder.mel) * 240
    cost = decoder.cost
    before = cost.network_seconds + cost.vocoder_seconds
    latency = measure_latency(decoder, tokens, None)
    spent = cost.network_seconds + cost.vocoder_seconds - before
    assert latency.real_time_factor == pytest.approx(spent / 0.8)


class RecordingVocoder(GriffinLim):
    """A vocoder that outputs a given recording at 24 kHz, whatever the mel."""

    def __init__(self, wave: np.ndarray) -> None:
        super().__init__(MelConfig())
        self.sample_rate = 24000
        self.wave = torch.from_numpy(soxr.resample(wave, 16000, 24000))

    @property
    def hop(self) -> int:
        """Number of samples of one mel frame."""
        return 240

    def decode(self, mel: Tensor) -> Tensor:
        """Returns the wave [1, N]."""
        return self.wave[None, : mel.shape[1] * 240]


def test_24_khz_waves_are_scored_against_16_khz_recordings_and_stored_at_their_own_rates(tmp_path: Path) -> None:
    wave = synthetic_voice(2.0)
    mel = MelSpectrogram(MelConfig())(torch.from_numpy(wave)[None])[0]
    drawn = DrawnClip(Clip("clip", wave, np.arange(50), np.zeros(0, np.float32)), wave)
    clip = HeldOutClip(drawn, torch.from_numpy(wave), mel, torch.zeros(8))
    model, vocoder = small_model(Layout(2, 24, (0,), (1,))), RecordingVocoder(wave)
    evaluator = ClipEvaluator(StreamingDecoder(model, vocoder), ClipScorer())
    chunk = Chunk(mel, vocoder.decode(mel[None])[0])
    assert len(chunk.wave) == 2 * 24000
    scores = evaluator.score(clip, chunk).collect()
    at_16 = ClipEvaluator(StreamingDecoder(model, GriffinLim(MelConfig())), ClipScorer())
    reference_scores = at_16.score(clip, Chunk(mel, clip.wave)).collect()
    assert all(math.isfinite(reference_scores[name]) for name in PERCEPTUAL)
    for name in (*PERCEPTUAL, "mel_l1"):
        assert scores[name] == pytest.approx(reference_scores[name], abs=0.2), name
    assert scores["seam_db"] == pytest.approx(reference_scores["seam_db"], abs=2)
    # A click at every chunk edge of the 24 kHz wave is detected: the edges are in samples of the right rate.
    clicking = chunk.wave.clone()
    clicking[evaluator.edges(clip) * 240] += 0.3
    assert evaluator.score(clip, Chunk(mel, clicking)).collect()["seam_db"] > 10

    validation = StreamingValidation(keep=1)
    validation.samples = tmp_path
    trainer = SimpleNamespace(global_step=7, loggers=[])
    validation._keep(trainer, evaluator, clip, chunk, chunk)  # type: ignore[arg-type]
    for name, rate in (("reference", 16000), ("offline", 24000), ("streamed", 24000)):
        info = soundfile.info(tmp_path / f"clip.{name}.wav")
        assert (info.samplerate, info.duration) == (rate, 2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"upsample_initial_channel": 128},
            r"tensors of .*vocoder.pt do not have the sizes of bigvgan_config: conv_pre.bias is \[64\], "
            r"expected \[128\]",
        ),
        ({"resblock_kernel_sizes": [3, 7]}, r"resblocks.1.* is \[32, 32, 5\], expected \[32, 32, 7\]"),
        (
            {"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]]},
            r"do not have .* is \[.*\], (expected \[|which the network does not have)",
        ),
        ({"mel_dim": 100}, "its num_mels is 100, the mel of this run has 80"),
        ({"upsample_rates": [5, 2, 2, 2, 2, 2]}, "upsample_rates multiply to 160, the hop length is 240 at 24000"),
    ],
)
def test_sizes_other_than_those_of_the_weights_are_refused_with_both_values(
    state: dict[str, Tensor], tmp_path: Path, change: dict, message: str
) -> None:
    path = save_as("", tmp_path, state)
    write_config(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        load_qwen(path, MelConfig())


def test_a_mel_other_than_qwen_s_is_refused_with_both_values(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = save_as("safetensors", tmp_path, state)
    with pytest.raises(ValueError, match="its win_size is 640, the mel of this run has 1024"):
        load_qwen(path, MelConfig(win_length=1024))


def test_a_missing_tensor_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = save_as("", tmp_path, {name: tensor for name, tensor in state.items() if name != "conv_post.weight"})
    with pytest.raises(ValueError, match=r"1 tensors of .*: conv_post.weight is missing, expected \[1, 1, 7\]"):
        load_qwen(path, MelConfig())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"code2wav_dit_model.proj_out.bias": torch.ones(1)}, "no tensor of code2wav_bigvgan_model in it: it has"),
        ({"mpd": {}, "epoch": 1}, "is nothing that sf-lightning can load: expected a vocoder checkpoint"),
        (torch.ones(1), "holds a Tensor: expected a state dict"),
    ],
)
def test_a_file_without_a_vocoder_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "g.pt")
    with pytest.raises(ValueError, match=f"g.pt.*{message}"):
        VocoderConfig(checkpoint=str(tmp_path / "g.pt")).make(MelConfig())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "no file or folder .*model.safetensors"),
        ("", "is nothing that sf-lightning can load: expected a vocoder checkpoint"),
    ],
)
def test_a_missing_checkpoint_is_named(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        VocoderConfig(checkpoint=str(tmp_path / name)).make(MelConfig())
