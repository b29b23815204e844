"""Streams: independence of pushes, neighbors in the batch and later tokens; comparison with offline decoding."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sf_lightning.model.layout import Layout
from sf_lightning.streaming.latency import measure_latency
from sf_lightning.streaming.state import DecodeConfig
from tests.toys.streaming import SMALL_SR, random_speaker, random_tokens, small_decoder, streamed_mel


@pytest.mark.parametrize("length", [1, 5, 6, 37, 48])
@pytest.mark.parametrize("chunk", [1, 2])
def test_the_wave_does_not_depend_on_how_tokens_are_pushed(length: int, chunk: int) -> None:
    decoder = small_decoder(chunk=chunk)
    tokens = random_tokens(length)
    stream = decoder.open(random_speaker())
    whole = torch.cat([stream.push(tokens), stream.flush()])
    assert len(whole) == length * 640
    assert whole.abs().mean() > 1e-4
    random = np.random.default_rng(0)
    for _ in range(3):
        cuts = np.sort(random.integers(0, length + 1, 5))
        stream = decoder.open(random_speaker())
        waves = [stream.push(part) for part in torch.tensor_split(tokens, torch.from_numpy(cuts))]
        assert torch.equal(torch.cat([*waves, stream.flush()]), whole)


def test_audio_is_emitted_as_soon_as_the_chunk_and_its_lookahead_have_arrived() -> None:
    decoder = small_decoder()
    stream = decoder.open()
    assert len(stream.push(random_tokens(11))) == 0
    assert len(stream.push(random_tokens(1))) == 24 * 160  # two blocks of tokens: the chunk and its look-ahead
    assert len(stream.push(random_tokens(6))) == 24 * 160
    assert len(stream.flush()) == 24 * 160


def test_a_layout_of_own_blocks_only_streams_exactly_as_offline() -> None:
    tokens, speaker = random_tokens(40), random_speaker()
    decoder = small_decoder(Layout(3, 24, (), ()))
    torch.testing.assert_close(
        streamed_mel(decoder, tokens, speaker),
        decoder.decode_offline([tokens], [speaker])[0].mel,
        atol=1e-4,
        rtol=0,
    )


def test_with_one_evaluation_streaming_equals_offline_because_the_receptive_field_is_the_whole_dependence() -> None:
    tokens, speaker = random_tokens(64), random_speaker()
    for layout in (SMALL_SR, Layout(4, 24, (0, 1, 3), (0, 2)), Layout(2, 24, (), (), "past")):
        decoder = small_decoder(layout, steps=1)
        difference = streamed_mel(decoder, tokens, speaker) - decoder.decode_offline([tokens], [speaker])[0].mel
        assert difference.abs().max() < 1e-4


def test_with_several_evaluations_the_gap_to_offline_closes_with_lookahead() -> None:
    tokens, speaker = random_tokens(64), random_speaker()
    gaps = []
    for lookahead in (1, 4):
        decoder = small_decoder(Layout(4, 24, (), (1,)), lookahead=lookahead)
        offline = decoder.decode_offline([tokens], [speaker])[0].mel
        gaps.append(float((streamed_mel(decoder, tokens, speaker) - offline).abs().mean()))
    assert gaps[0] > 10 * gaps[1]


def test_streams_in_one_batch_equal_each_decoded_alone() -> None:
    decoder = small_decoder()
    tokens = [random_tokens(20, 1), random_tokens(33, 2), random_tokens(6, 3)]
    speakers = [random_speaker(1), None, random_speaker(3)]
    configs = [replace(decoder.config, seed=i) for i in range(3)]
    streams = [decoder.open(speaker, config) for speaker, config in zip(speakers, configs, strict=True)]
    for stream, utterance in zip(streams, tokens, strict=True):
        stream.feed(utterance)
        stream.end()
    mels: list[list[Tensor]] = [[], [], []]
    while not all(stream.finished for stream in streams):
        for mel, chunk in zip(mels, decoder.step(streams), strict=True):
            mel.append(chunk.mel)
    for i in range(3):
        (alone,) = decoder.decode([tokens[i]], [speakers[i]], configs[i])
        torch.testing.assert_close(torch.cat(mels[i]), alone.mel, atol=1e-4, rtol=0)


def test_emitted_audio_does_not_depend_on_later_tokens() -> None:
    decoder = small_decoder()
    waves = []
    for later in (random_tokens(12, 5), random_tokens(12, 6)):
        stream = decoder.open()
        waves.append(stream.push(random_tokens(24)))
        stream.push(later)
    assert len(waves[0]) == 3 * 24 * 160 and torch.equal(*waves)


def test_speaker_seed_and_tokens_change_the_mel() -> None:
    decoder = small_decoder()
    mel = streamed_mel(decoder, random_tokens(12), random_speaker())
    assert not torch.allclose(mel, streamed_mel(decoder, random_tokens(12, 9), random_speaker()), atol=1e-2)
    assert not torch.allclose(mel, streamed_mel(decoder, random_tokens(12), random_speaker(9)), atol=1e-2)
    assert not torch.allclose(mel, streamed_mel(decoder, random_tokens(12), None), atol=1e-2)
    other_seed = small_decoder(seed=1)
    assert not torch.allclose(mel, streamed_mel(other_seed, random_tokens(12), random_speaker()), atol=1e-2)


def test_the_state_of_a_long_stream_is_as_large_as_that_of_a_short_one() -> None:
    decoder = small_decoder()
    stream = decoder.open()
    sizes = []
    for i in range(12):
        stream.push(random_tokens(18, i))
        state = stream.state
        sizes.append((len(state.tokens), len(state.vocoder.mel), len(state.vocoder.wave)))
    assert len(set(sizes[3:])) == 1
    assert stream.state.tokens.untyped_storage().nbytes() <= 8 * 6 * 8


def test_a_windowed_stream_evaluates_the_blocks_of_its_windows() -> None:
    decoder = small_decoder(mode="windowed")
    streamed_mel(decoder, random_tokens(30))
    # Five blocks, p = 2, q = 1: windows of 2, 3, 4, 4 and, at the end without look-ahead, 3.
    assert decoder.cost.block_evaluations == 4 * (2 + 3 + 4 + 4 + 3)


@pytest.mark.parametrize("unbounded", ["past", "all"])
@pytest.mark.parametrize("lookahead", [0, 2])
def test_each_chunk_of_an_unbounded_layout_is_that_of_offline_decoding_of_the_tokens_so_far(
    unbounded: str, lookahead: int
) -> None:
    decoder = small_decoder(Layout(2, 24, (), (), unbounded), lookahead=lookahead, chunk=2)  # type: ignore[arg-type]
    tokens, speaker = random_tokens(40), random_speaker()
    mel = streamed_mel(decoder, tokens, speaker)
    assert mel.shape == (160, 80)
    for start in range(0, 7, 2):  # seven blocks of six tokens
        arrived = tokens[: 6 * (start + 2 + lookahead)]
        (offline,) = decoder.decode_offline([arrived], [speaker])
        chunk = slice(24 * start, 24 * (start + 2))
        torch.testing.assert_close(mel[chunk], offline.mel[chunk], atol=1e-4, rtol=0)


def test_a_stream_shorter_than_a_block_is_decoded_at_its_end_and_an_empty_one_is_silent() -> None:
    decoder = small_decoder()
    stream = decoder.open(random_speaker())
    assert len(stream.push(random_tokens(2))) == 0
    (offline,) = decoder.decode_offline([random_tokens(2)], [random_speaker()])
    assert len(offline.wave) == 2 * 640 and torch.equal(stream.flush(), offline.wave)
    assert len(decoder.open().flush()) == 0


def test_the_parts_of_a_latency_report_add_up() -> None:
    report = measure_latency(small_decoder(chunk=2), random_tokens(40), None)
    assert report.wait_ms == 720  # two blocks and one ahead
    assert report.first_packet_ms == pytest.approx(report.wait_ms + report.network_ms + report.vocoder_ms)
    assert report.num_evaluations == 4 and len(report.chunk_ms) == 4
    assert 0 < report.real_time_factor == pytest.approx(sum(report.chunk_ms) / 1600)  # 1.6 s of audio


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.tensor([0, 50]), "token 50 is outside the vocabulary of 50 codes"),
        (torch.tensor([-1, 3]), "token -1 is outside"),
        (torch.tensor([1.5]), "expected integers"),
        (torch.zeros(2, 3, dtype=torch.long), r"tokens have shape \[2, 3\]"),
    ],
)
def test_invalid_tokens_are_refused_and_the_stream_continues(tokens: Tensor, message: str) -> None:
    decoder = small_decoder()
    stream = decoder.open()
    stream.push(random_tokens(12))
    with pytest.raises(ValueError, match=message):
        stream.push(tokens)
    assert len(stream.flush()) == 24 * 160


def test_a_push_after_the_flush_and_an_invalid_speaker_are_refused() -> None:
    decoder = small_decoder()
    stream = decoder.open()
    stream.flush()
    with pytest.raises(ValueError, match="was flushed: open a new one"):
        stream.push(random_tokens(1))
    with pytest.raises(ValueError, match=r"shape \[3\]: expected \[8\]"):
        decoder.open(torch.zeros(3))
    with pytest.raises(ValueError, match=r"shape \[3\]: expected \[8\]"):
        decoder.decode_offline([random_tokens(6)], [torch.zeros(3)])
    with pytest.raises(ValueError, match="NaN or infinity"):
        decoder.open(torch.full((8,), float("nan")))
    with pytest.raises(ValueError, match="no tokens"):
        decoder.decode_offline([random_tokens(0)], [None])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"lookahead": -1}, "lookahead is -1"),
        ({"method": "heun"}, "'heun': expected one of euler, midpoint, rk4"),
        ({"mode": "live"}, "'live': expected cached, windowed or offline"),
        ({"seed": -1}, "decode.seed is -1: expected an integer from 0 to 9223372036854775807"),
        ({"guidance": math.nan}, "decode.guidance is nan"),
        ({"temperature": -0.5}, "decode.temperature is -0.5"),
        ({"sway": math.inf}, "decode.sway is inf"),
    ],
)
def test_a_decode_config_out_of_range_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeConfig(**change)
