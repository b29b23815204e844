"""Audio of streams: equality with offline decoding, timing, and vocoders with weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.layout import Layout
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.latency import measure_latency
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.streaming.vocoding import stream_mel
from sf_lightning.vocoder.bigvgan import BigVGANVocoder
from sf_lightning.vocoder.griffin_lim import GriffinLim
from tests.toys.networks import randomize_weights, small_model
from tests.toys.recipes import recipe_config, vocoder_sizes
from tests.toys.streaming import SMALL_SR, random_speaker, random_tokens, small_decoder


def with_bigvgan(path: Path, layout: Layout, **config: object) -> StreamingDecoder:
    """Returns a small decoder with the small BigVGAN of a checkpoint."""
    return small_decoder(layout, BigVGANVocoder.from_checkpoint(path, MelConfig()), **config)


@pytest.mark.parametrize(
    ("layout", "config"),
    [
        (SMALL_SR, {"lookahead": 4}),
        (SMALL_SR, {"lookahead": 6, "chunk": 2, "first_chunk": 1}),
        (Layout(4, 24, (0, 2), ()), {}),
        (Layout(4, 8, (0, 2), (1,)), {"lookahead": 4}),
    ],
)
@pytest.mark.parametrize("length", [3, 60, 61])
def test_streamed_audio_of_bigvgan_equals_offline(
    bigvgan: Path,
    layout: Layout,
    config: dict,
    length: int,
) -> None:
    decoder = with_bigvgan(bigvgan, layout, exact_vocoder=True, **config)
    tokens, speaker = random_tokens(length), random_speaker()
    offline = decoder.decode_offline([tokens], [speaker])[0].wave
    stream = decoder.open(speaker)
    streamed = torch.cat([*(stream.push(part) for part in tokens.split(5)), stream.flush()])
    assert offline.abs().mean() > 1e-3
    torch.testing.assert_close(streamed, offline, atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("frames", [24, 100, 150])
def test_a_complete_mel_is_streamed_as_a_decoder_streams_it(bigvgan: Path, frames: int) -> None:
    vocoder = BigVGANVocoder.from_checkpoint(bigvgan, MelConfig())
    mel = torch.randn(frames, 80, generator=torch.Generator().manual_seed(0))
    whole = vocoder.decode(mel[None])[0]
    exact = [*stream_mel(vocoder, mel, chunk=24, ahead=24, exact=True)]
    torch.testing.assert_close(torch.cat(exact), whole, atol=1e-4, rtol=0)
    assert len(exact[0]) == 160 * (24 if frames == 24 else 24 - vocoder.right)  # delayed by the right context
    soon = [*stream_mel(vocoder, mel, chunk=24, ahead=3)]
    assert [len(wave) // 160 for wave in soon] == [24] * (frames // 24) + [frames % 24] * (frames % 24 > 0)
    gap = (torch.cat(soon) - whole).abs().max()
    if frames > 24:
        assert gap > 1e-3  # the missing context is extrapolated
    # With its whole right context nothing is extrapolated.
    sure = torch.cat([*stream_mel(vocoder, mel, chunk=24, ahead=vocoder.right)])
    torch.testing.assert_close(sure, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("recipe", ["vocoder", "vocoder_base", "vocoder_small"])
def test_every_size_of_vocoder_streams_exactly_or_with_lower_latency(repository: Path, recipe: str) -> None:
    generator, _ = vocoder_sizes(recipe_config(repository, recipe))
    sizes = replace(generator, channels=16).hyperparameters(MelConfig())  # its receptive field, in fewer channels
    vocoder = randomize_weights(BigVGANVocoder(sizes, MelConfig()))
    assert isinstance(vocoder, BigVGANVocoder)
    config = DecodeConfig(steps=2, guidance=0.0, lookahead=2, exact_vocoder=True)
    exact, soon = (
        StreamingDecoder(small_model(SMALL_SR), vocoder, replace(config, exact_vocoder=is_exact))
        for is_exact in (True, False)
    )
    tokens = random_tokens(40)
    offline = exact.decode_offline([tokens], [None])[0].wave
    streamed, early = (decoder.decode([tokens], [None])[0].wave for decoder in (exact, soon))
    scale = float(offline.abs().max())
    torch.testing.assert_close(streamed, offline, atol=1e-4 * scale, rtol=0)
    assert len(early) == len(offline) and 0 < (early - offline).abs().max() < scale
    waits = [measure_latency(decoder, tokens, None).wait_ms for decoder in (exact, soon)]
    assert waits[1] == 3 * 240 and waits[0] == waits[1] + 240 * (vocoder.right > 24)


@pytest.mark.slow
def test_a_provisional_right_context_lowers_latency_and_is_close(bigvgan: Path) -> None:
    layout = Layout(4, 8, (0, 2), (1,))  # the vocoder can use more than a block
    exact, soon = (with_bigvgan(bigvgan, layout, lookahead=2, exact_vocoder=which) for which in (True, False))
    tokens = random_tokens(61)
    waits = [measure_latency(decoder, tokens, None).wait_ms for decoder in (exact, soon)]
    assert waits[1] == 3 * 80 and waits[0] > waits[1]
    waves = [decoder.decode([tokens], [None])[0].wave for decoder in (exact, soon)]
    assert 0 < (waves[0] - waves[1]).abs().mean() < 0.2 * waves[0].abs().mean()


def test_a_stream_in_mode_offline_is_emitted_at_its_end() -> None:
    decoder = small_decoder(mode="offline")
    stream = decoder.open(random_speaker())
    assert len(stream.push(random_tokens(60))) == 0
    assert torch.equal(
        stream.flush(), small_decoder().decode_offline([random_tokens(60)], [random_speaker()])[0].wave
    )


def test_edges_are_the_first_blocks_of_chunks() -> None:
    assert DecodeConfig(chunk=4, first_chunk=1).edges(10) == [1, 5, 9]
    assert DecodeConfig(chunk=2).edges(4) == [2] and DecodeConfig(mode="offline").edges(4) == []


def test_at_full_lookahead_the_first_packet_needs_only_its_last_block_to_be_computed() -> None:
    full = measure_latency(small_decoder(lookahead=4), random_tokens(60), None)
    assert full.wait_ms == 5 * 240 and len(full.chunk_ms) == 10
    assert full.network_ms < full.chunk_ms[0]  # most of it was computed while tokens were still coming
    assert measure_latency(small_decoder(), random_tokens(3), None).wait_ms == 120  # no waiting after the end


def test_an_empty_push_changes_nothing() -> None:
    stream, other = (small_decoder().open() for _ in range(2))
    nothing = torch.zeros(0, dtype=torch.long)
    pushed = [stream.push(nothing), stream.push(random_tokens(12)), stream.push(nothing), stream.flush()]
    assert [len(wave) for wave in pushed] == [0, 24 * 160, 0, 24 * 160]
    assert torch.equal(torch.cat(pushed), torch.cat([other.push(random_tokens(12)), other.flush()]))


@pytest.mark.parametrize("lookahead", [1, 4])
def test_bf16_weights_decode_like_fp32_weights(lookahead: int) -> None:
    tokens, speaker = random_tokens(40), random_speaker()
    mels = []
    for dtype in (torch.float32, torch.bfloat16):
        model = small_model(SMALL_SR)
        model.dit.to(dtype)
        decoder = StreamingDecoder(model, GriffinLim(MelConfig(), 2), DecodeConfig(steps=4, lookahead=lookahead))
        mels.append(decoder.decode([tokens], [speaker])[0].mel)
    assert mels[1].dtype == torch.float32
    assert 0 < (mels[0] - mels[1]).abs().mean() < 0.02 * mels[0].std()
