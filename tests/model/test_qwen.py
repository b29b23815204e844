"""Qwen2.5-Omni token2wav's DiT and ours compute the same function of the same weights."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from sf_lightning.audio.mel import MelConfig
from sf_lightning.flow.guidance import guided
from sf_lightning.flow.solver import Solver
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.dit import DiTConfig
from sf_lightning.model.layout import Layout
from sf_lightning.model.qwen import fill, from_qwen, read_voices, warm_start
from sf_lightning.model.qwen_export import to_qwen
from sf_lightning.model.qwen_names import SCALE, X_VECTORS
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale, StreamFlow
from sf_lightning.training.module import StreamFlowModule
from tests.toys.qwen import omni, save_token2wav, small_token2wav

pytest.importorskip("transformers")


def ours(theirs: Any) -> StreamFlow:
    """Returns the same network as our `StreamFlow`."""
    return from_qwen(theirs.state_dict(), theirs.config.to_dict())


def inputs(theirs: Any, tokens: int, batch: int = 2) -> dict[str, Tensor]:
    """Returns random inputs under token2wav's names, with one x-vector per utterance [B, X]."""
    config, random = theirs.config, torch.Generator().manual_seed(tokens)
    frames = tokens * config.repeats
    return {
        "hidden_states": torch.randn(batch, frames, config.mel_dim, generator=random),
        "condition_vector": torch.randn(batch, 50, config.mel_dim, generator=random),
        "speaker_embedding": torch.randn(batch, config.enc_emb_dim, generator=random),
        "quantized_code": torch.randint(0, config.num_embeds, (batch, tokens), generator=random),
        "time_step": torch.rand(batch, generator=random),
    }


def their_velocity(theirs: Any, given: dict[str, Tensor], **more: Any) -> Tensor:
    """Returns token2wav's velocity [B, T, F]."""
    frames = given["hidden_states"].shape[1]
    x_vectors = given["speaker_embedding"][:, None].expand(-1, frames, -1)
    return theirs(**(given | {"speaker_embedding": x_vectors}), **{"apply_cfg": False, **more})


def cut(x: Tensor, size: int) -> Tensor:
    """Returns [B, N, ...] split into blocks [B ceil(N / size), size, ...], padded with zeros."""
    x = pad(x, (*(0, 0) * (x.ndim - 2), 0, -x.shape[1] % size))
    return x.unflatten(1, (-1, size)).flatten(0, 1)


def our_velocity(
    model: StreamFlow, given: dict[str, Tensor], drop_speaker: bool = False, drop: bool = False
) -> Tensor:
    """Returns our velocity [B, T, F]."""
    batch, frames, bands = given["hidden_states"].shape
    size, repeats = model.layout.block_size, model.dit.config.frames_per_token
    blocks = Blocks.from_lengths([frames] * batch, size)
    speaker = model.encoder(given["condition_vector"], given["speaker_embedding"])
    tokens = cut(given["quantized_code"], size // repeats)
    no_speaker, no_tokens = torch.full((batch,), drop_speaker or drop), torch.full((batch,), drop)
    condition = model.condition(tokens, speaker, blocks, no_speaker, no_tokens)
    y = model.velocity(cut(given["hidden_states"], size), given["time_step"], condition, blocks)
    return y[blocks.valid].view(batch, frames, bands)


VARIANTS = {
    "default layout": {},
    "two ahead": {"look_ahead_layers": [1, 3], "look_backward_layers": [0, 2]},
    "a layer both ways": {"look_ahead_layers": [0], "look_backward_layers": [0]},
    "blocks alone": {"look_ahead_layers": [], "look_backward_layers": []},
    "every layer back": {"look_ahead_layers": [], "look_backward_layers": [0, 1, 2, 3]},
    "short blocks": {"block_size": 8},
    "wider": {"hidden_size": 96, "num_attention_heads": 6, "ff_mult": 4},
    "four frames a token": {"repeats": 4},
}


@pytest.mark.parametrize("tokens", [1, 12, 36, 41])
@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_token2wav_and_ours_predict_the_same_velocity(name: str, tokens: int) -> None:
    theirs = small_token2wav(**VARIANTS[name])
    model = ours(theirs)
    given = inputs(theirs, tokens)
    expected = their_velocity(theirs, given)
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(our_velocity(model, given), expected, atol=1e-5, rtol=0)
    # Its null condition: code 0 with the speaker embedding of a mel of zeros.
    dropped = their_velocity(theirs, given, drop_audio_conditioning=True)
    torch.testing.assert_close(our_velocity(model, given, drop_speaker=True), dropped, atol=1e-5, rtol=0)
    null = their_velocity(theirs, given, drop_audio_conditioning=True, drop_code=True)
    torch.testing.assert_close(our_velocity(model, given, drop=True), null, atol=1e-5, rtol=0)
    assert (null - expected).abs().mean() > 0.01 and (dropped - expected).abs().mean() > 0.01
    both = their_velocity(theirs, given, apply_cfg=True)
    torch.testing.assert_close(torch.cat([expected, null]), both, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_default_network_has_token2wav_s_parameters_and_agrees_at_full_size() -> None:
    full = {"num_hidden_layers": 22, "hidden_size": 1024, "num_attention_heads": 16, "head_dim": 64}
    config = omni.configuration_qwen2_5_omni.Qwen2_5OmniDiTConfig(attn_implementation="sdpa")
    assert {name: getattr(config, name) for name in full} == full
    with torch.device("meta"):
        theirs = omni.modeling_qwen2_5_omni.Qwen2_5OmniToken2WavDiTModel(config)
        model = StreamFlow(
            Layout(),
            DiTConfig(
                rope_heads=1,
                token_repeat=True,
                null_condition="zeros",
                speaker_width=320,
                vocabulary=8193,
                frames_per_token=2,
            ),
            MelConfig(),
            SCALE,
            SpeakerConfig(encoder="qwen", channels=256, x_vectors=X_VECTORS),
            "velocity",
        )
    count = sum(p.numel() for p in theirs.parameters())
    assert count == 333_607_760
    assert sum(p.numel() for p in model.parameters()) == count
    names = {name for name in theirs.state_dict() if not name.startswith("rotary")}
    assert to_qwen_names(model) == names


def to_qwen_names(model: StreamFlow) -> set[str]:
    """Returns the names of the exported weights of a model on the meta device."""
    model = model.to_empty(device="cpu")
    model.dit.tokens.table.weight.zero_()
    return set(to_qwen(model))


def test_gradients_equal_those_of_token2wav() -> None:
    theirs = small_token2wav()
    model = ours(theirs)
    given = inputs(theirs, 41)
    their_velocity(theirs, given).square().mean().backward()
    our_velocity(model, given).square().mean().backward()
    # The gradients replace the weights, so that the export converts them.
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    scale = model.dit.tokens.scale
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
        model.dit.tokens.table.weight.div_(scale**2)  # d/dw is scale times d/d(scale w), and export multiplies
    # Weight and bias of a layer together: a bias in front of a softmax has a gradient of zero, and its rounding.
    squares: dict[str, list[float]] = {}
    for name, gradient in to_qwen(model).items():
        error, size = squares.setdefault(name.rpartition(".")[0], [0.0, 0.0])
        error += float((gradient - expected[name]).double().square().sum())
        squares[name.rpartition(".")[0]] = [error, size + float(expected[name].double().square().sum())]
    assert len(squares) > 40
    for layer, (error, size) in squares.items():
        assert size > 0 and error <= 1e-8 * size, f"{layer}: {(error / size) ** 0.5:.1e}"


@torch.inference_mode()
def test_token2wav_s_sampler_is_rk4_on_a_sway_grid_with_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = small_token2wav()
    model = ours(theirs)
    given = inputs(theirs, 41, batch=1)
    frames, bands = given["hidden_states"].shape[1:]
    monkeypatch.setattr(torch, "randn", lambda *_, **__: given["hidden_states"].clone())
    expected = theirs.sample(
        given["speaker_embedding"], given["condition_vector"], given["quantized_code"], num_steps=10
    )
    monkeypatch.undo()
    size = model.layout.block_size
    blocks = Blocks.from_lengths([frames], size)
    speaker = model.encoder(given["condition_vector"], given["speaker_embedding"])
    kept = torch.zeros(1, dtype=torch.bool)
    condition = model.condition(cut(given["quantized_code"], size // 2), speaker, blocks, kept, kept)
    solver = Solver(9, "rk4")

    def network(x: Tensor, number: int, condition: Tensor, blocks: Blocks) -> Tensor:
        return model.velocity(x, solver.times[number].expand(blocks.num_utterances), condition, blocks)

    velocity = guided(network, condition, model.null_condition(blocks), blocks, 0.5)
    x = solver.integrate(velocity, cut(given["hidden_states"], size))
    mel = x[blocks.valid].view(frames, bands)
    assert mel.std() > 0.5
    torch.testing.assert_close(mel, expected[0].T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix", ["", "code2wav_dit_model.", "token2wav.code2wav_dit_model."])
def test_weights_convert_to_ours_and_back_under_any_prefix(prefix: str) -> None:
    theirs = small_token2wav()
    state = {prefix + name: value for name, value in theirs.state_dict().items()}
    state |= {"thinker.something": torch.zeros(1)} if prefix else {}
    state[prefix + "rotary_embed.inv_freq"] = torch.zeros(8)  # saved by older versions
    back = to_qwen(from_qwen(state, theirs.config.to_dict()))
    assert back.keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(back[name], value, atol=0, rtol=1e-6)
    theirs.load_state_dict(back)


def recipe(**change: Any) -> StreamFlow:
    """Returns a model with the width and depth of the small token2wav, as a recipe could describe it."""
    torch.manual_seed(1)
    given: dict[str, Any] = {
        "layout": Layout(4, 24, (0, 2), (1,)),
        "dit": DiTConfig(
            width=64, num_heads=4, rope_heads=1, token_width=24, speaker_width=12, vocabulary=40, frames_per_token=4
        ),
        "mel": MelConfig(),
        "scale": SCALE,
        "speaker": SpeakerConfig(encoder="qwen", channels=16),
        "predict": "velocity",
    }
    dit = dataclasses.replace(given["dit"], **change.pop("dit", {}))
    return StreamFlow(**(given | change | {"dit": dit}))


def test_a_warm_start_reports_what_was_loaded_resized_and_skipped() -> None:
    state = small_token2wav().state_dict()
    report = fill(model := recipe(), state)
    assert "copied for each of its 4 frames" in str(report) and "x-vectors skipped" in str(report)
    rows = (model.dit.tokens.table.weight * model.dit.tokens.scale).unflatten(1, (4, 24))
    torch.testing.assert_close(rows[:40, 2], state["text_embed.codec_embed.weight"][:40])
    torch.testing.assert_close(rows[40, 3], state["text_embed.codec_embed.weight"][0])  # null starts as code 0
    assert report.loaded == report.parameters - model.encoder.learned_null.numel()
    torch.testing.assert_close(model.encoder.null(), model.encoder.silence())
    other = fill(recipe(dit={"vocabulary": 30}), state)
    assert "a vocabulary of 40, dit.vocabulary is 30" in str(other)
    assert other.loaded < report.loaded
    joint = fill(recipe(speaker=SpeakerConfig(channels=16)), state)
    assert "reference encoder skipped" in str(joint)


@torch.inference_mode()
def test_x_vectors_of_another_encoder_start_with_zero_weights() -> None:
    theirs = small_token2wav()
    change = {"dit": {"speaker_width": 32, "null_condition": "zeros"}}

    def columns(name: str) -> tuple[Tensor, str]:
        model = recipe(speaker=SpeakerConfig("qwen", 16, x_vectors=name, x_vector_width=20), **change)
        report = fill(model, theirs.state_dict())
        return model.dit.from_condition.weight[:, -20:], str(report)

    kept, _ = columns(X_VECTORS)
    assert torch.equal(kept, theirs.input_embed.proj.weight[:, -20:])
    fresh, message = columns("speechbrain")
    assert (fresh == 0).all() and "speaker.x_vectors is 'speechbrain', not 'qwen2.5-omni'" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": Layout(5, 24, (0, 2), (1,))}, "layout.num_layers is 5, the weights to start from have 4"),
        ({"dit": {"width": 128}}, "dit.width is 128, the weights to start from have 64"),
        ({"dit": {"token_width": 32}}, "dit.token_width is 32, the weights to start from have 24"),
        ({"dit": {"mlp_ratio": 4}}, "dit.mlp_ratio is 4, the weights to start from have 2"),
        ({"dit": {"rope_heads": None}}, "dit.rope_heads is 4, the weights to start from have 1"),
        ({"dit": {"speaker_width": 16}}, "dit.speaker_width without x-vectors is 16, the weights .* have 12"),
        ({"predict": "mel"}, "predict is 'mel', the weights to start from have 'velocity'"),
        ({"scale": MelScale()}, r"scale is \(-5.0, 2.4\), the weights to start from have \(0.0, 1.0\)"),
        ({"speaker": SpeakerConfig("qwen", 32)}, "speaker.channels is 32, the weights to start from have 16"),
    ],
)
def test_weights_of_another_architecture_are_refused_with_both_values(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill(recipe(**change), small_token2wav().state_dict())


def test_a_missing_or_unknown_weight_is_named() -> None:
    state = small_token2wav().state_dict()
    with pytest.raises(ValueError, match=r"transformer_blocks.3.ff.ff.3.bias is missing"):
        from_qwen({n: v for n, v in state.items() if n != "transformer_blocks.3.ff.ff.3.bias"})
    for odd in ("transformer_blocks.0.conv.weight", "transformer_blocks.x.y", "input_embed.spk_encoder.x"):
        with pytest.raises(ValueError, match=f"{odd} is unknown"):
            from_qwen(state | {odd: torch.zeros(1)})
    with pytest.raises(ValueError, match=r"spk_encoder.asp.conv.bias is missing"):
        from_qwen({n: v for n, v in state.items() if n != "input_embed.spk_encoder.asp.conv.bias"})
    with pytest.raises(ValueError, match=r"proj_out.weight has shape \[64\]: expected 2 dimensions"):
        from_qwen(state | {"proj_out.weight": torch.zeros(64)})
    with pytest.raises(ValueError, match=r"has 90 inputs: expected more than 116"):
        from_qwen(state | {"input_embed.proj.weight": torch.zeros(64, 90)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "dit.null_condition is 'learned', token2wav requires 'zeros'"),
        ({"dit": {"rope_heads": 2}}, "dit.rope_heads is 2, token2wav requires 1"),
        ({"predict": "mel"}, "predict is 'mel', token2wav requires 'velocity'"),
    ],
)
def test_a_setting_that_token2wav_does_not_have_is_not_exported(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_qwen(recipe(**change))


def test_a_token_with_different_embeddings_for_its_frames_is_not_exported() -> None:
    speaker = SpeakerConfig("qwen", 16, x_vectors=X_VECTORS, x_vector_width=20)
    model = recipe(dit={"null_condition": "zeros", "speaker_width": 32}, speaker=speaker)
    with pytest.raises(ValueError, match=r"train with --model\.dit\.token_repeat=true"):
        to_qwen(model)


@torch.inference_mode()
def test_the_voices_of_qwen_are_read_by_name(tmp_path: Path) -> None:
    theirs = small_token2wav()
    model = ours(theirs)
    given = inputs(theirs, 12, batch=1)
    voice = {"cond": given["speaker_embedding"], "ref_mel": given["condition_vector"], "bos_token": 7}
    torch.save({"Ada": voice}, tmp_path / "spk_dict.pt")
    embedding = read_voices(model, tmp_path / "spk_dict.pt")["Ada"]
    expected = theirs.input_embed.spk_encoder(given["condition_vector"])
    torch.testing.assert_close(embedding[:12], expected[0], atol=1e-6, rtol=0)
    assert torch.equal(embedding[12:], given["speaker_embedding"][0])
    torch.save({"Ada": given["speaker_embedding"]}, tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match="'Ada' is no voice"):
        read_voices(model, tmp_path / "wrong.pt")


def test_a_warm_start_initializes_the_network_and_its_average_once(tmp_path: Path) -> None:
    theirs = small_token2wav()
    shutil.copytree(save_token2wav(theirs, tmp_path / "qwen"), tmp_path / "gone")
    module = StreamFlowModule(
        Layout(4, 24, (0, 2), (1,)),
        DiTConfig(
            width=64, num_heads=4, rope_heads=1, token_width=24, speaker_width=12, vocabulary=40, frames_per_token=4
        ),
        scale=SCALE,
        speaker=SpeakerConfig(encoder="qwen", channels=16),
        predict="velocity",
        init_from=str(tmp_path / "gone"),
    )
    module.load_initial_weights()
    loaded = theirs.proj_out.weight
    assert torch.equal(module.model.dit.to_velocity.weight, loaded)
    assert torch.equal(module.average.dit.to_velocity.weight, loaded)
    with torch.no_grad():
        module.model.dit.to_velocity.weight.zero_()
    shutil.rmtree(tmp_path / "gone")
    module.load_initial_weights()  # it does nothing the second time
    assert (module.model.dit.to_velocity.weight == 0).all()


def test_other_numbers_of_heads_are_refused(tmp_path: Path) -> None:
    folder = save_token2wav(small_token2wav(), tmp_path / "qwen")
    with pytest.raises(ValueError, match=r"has 4 attention heads, dit.num_heads is 2"):
        warm_start(recipe(dit={"num_heads": 2}), folder)
