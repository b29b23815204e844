"""Streaming with a KV cache: at full look-ahead a stream equals offline decoding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.layout import Layout
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.streaming.wavefront import Wavefront
from sf_lightning.vocoder.griffin_lim import GriffinLim
from tests.toys.networks import small_model
from tests.toys.streaming import random_speaker, random_tokens, small_decoder, streamed_mel


def draw_case(seed: int) -> tuple[Layout, DecodeConfig, int]:
    """Returns a random layout, decode config and number of tokens."""
    random = np.random.default_rng(seed)
    depth = int(random.integers(1, 6))
    back, ahead = (tuple(np.flatnonzero(random.random(depth) < 0.5).tolist()) for _ in range(2))
    method = ("euler", "midpoint", "rk4")[random.integers(3)]
    layout = Layout(depth, int(random.choice([8, 12, 24])), back, ahead)
    steps = int(random.integers(1, 4 if method == "euler" else 2))
    config = DecodeConfig(
        steps=steps,
        method=method,
        guidance=float(random.choice([0.0, 0.7])),
        chunk=int(random.integers(1, 4)),
        first_chunk=int(random.integers(1, 3)),
        seed=seed,
    )
    return layout, config, int(random.integers(1, 70))


@pytest.mark.parametrize("seed", range(24))
def test_streaming_equals_offline_at_full_lookahead(seed: int) -> None:
    layout, config, length = draw_case(seed)
    full = int(layout.field.ahead) * config.num_evaluations
    decoder = StreamingDecoder(small_model(layout), GriffinLim(MelConfig(), 1), replace(config, lookahead=full))
    tokens, speaker = random_tokens(length, seed), random_speaker(seed)
    offline = decoder.decode_offline([tokens], [speaker])[0].mel
    assert offline.std() > 0.1
    difference = (streamed_mel(decoder, tokens, speaker) - offline).abs().max()
    assert difference < 1e-5 * offline.abs().max()


@pytest.mark.parametrize("seed", range(24, 36))
def test_below_full_lookahead_the_gap_to_offline_closes(seed: int) -> None:
    layout, config, _ = draw_case(seed)
    layout = replace(layout, backward=(0,), forward=(layout.num_layers - 1,))
    config = replace(config, steps=3, method="euler", chunk=1, first_chunk=1)
    tokens, gaps = random_tokens(60, seed), []
    for lookahead in (1, 2, 3):
        decoder = StreamingDecoder(
            small_model(layout), GriffinLim(MelConfig(), 1), replace(config, lookahead=lookahead)
        )
        gaps.append(
            float((streamed_mel(decoder, tokens) - decoder.decode_offline([tokens], [None])[0].mel).abs().mean())
        )
    assert gaps[0] > 1e-6 and gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-5


def test_a_layout_without_lookahead_streams_exactly_without_added_latency() -> None:
    decoder = small_decoder(Layout(5, 24, (0, 3), ()), steps=5, guidance=0.5)
    tokens, speaker = random_tokens(50), random_speaker()
    assert decoder.config.lookahead == 0
    offline = decoder.decode_offline([tokens], [speaker])[0].mel
    gap = (streamed_mel(decoder, tokens, speaker) - offline).abs().max()
    windowed = small_decoder(Layout(5, 24, (0, 3), ()), steps=5, guidance=0.5, mode="windowed")
    assert gap < 1e-5 < (streamed_mel(windowed, tokens, speaker) - offline).abs().max()  # windows are not exact


@pytest.mark.parametrize("lookahead", [1, 2, 4])
def test_a_token_beyond_the_lookahead_changes_nothing_and_one_within_does(lookahead: int) -> None:
    decoder = small_decoder(Layout(4, 24, (0, 2), (1,)), lookahead=lookahead)
    tokens = random_tokens(60)
    before = streamed_mel(decoder, tokens)
    for place in (5, 7):
        tokens[6 * place] = (tokens[6 * place] + 1) % 50
        moved = (streamed_mel(decoder, tokens) - before).abs().view(-1, 24 * 80).amax(1) > 0
        tokens[6 * place] = (tokens[6 * place] - 1) % 50
        assert not moved[: place - lookahead].any()
        assert moved[place]


def test_the_chunk_size_changes_nothing_at_full_lookahead_and_little_below() -> None:
    tokens = random_tokens(60)

    def stream_with(chunk: int, lookahead: int) -> Tensor:
        return streamed_mel(small_decoder(Layout(4, 24, (0, 2), (1,)), chunk=chunk, lookahead=lookahead), tokens)

    assert (stream_with(1, 4) - stream_with(3, 4)).abs().max() < 1e-4
    assert (stream_with(1, 1) - stream_with(3, 1)).abs().max() > 1e-4


def test_a_chunk_costs_its_blocks_and_their_lookahead_at_any_position() -> None:
    decoder = small_decoder(Layout(4, 24, (0, 2), (1,)), chunk=2, lookahead=3)
    stream = decoder.open()
    costs = []
    for number in range(8):
        before = decoder.cost.block_evaluations
        stream.push(random_tokens(12, number))
        costs.append(decoder.cost.block_evaluations - before)
    assert costs == [0, 0, *[4 * (2 + 3)] * 6]


def test_the_cache_of_a_stream_does_not_grow() -> None:
    decoder = small_decoder(Layout(4, 24, (0, 2), (1,)))
    stream, sizes = decoder.open(), []
    for number in range(10):
        stream.push(random_tokens(12, number))
        state = stream.state
        held = [state.cache, state.tokens, state.vocoder.mel, state.vocoder.wave]
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in held if tensor is not None))
    assert len(set(sizes[3:])) == 1
    assert stream.state.cache is not None and stream.state.cache.shape == (4, 2, 2, 2, 2, 24, 16)


def test_streams_with_different_settings_advance_in_one_call() -> None:
    decoder = small_decoder()
    configs = [decoder.config, replace(decoder.config, steps=2), replace(decoder.config, guidance=0.0, chunk=2)]
    streams = [decoder.open(random_speaker(i), config) for i, config in enumerate(configs)]
    for stream in streams:
        stream.feed(random_tokens(31))
        stream.end()
    parts: list[list[Tensor]] = [[], [], []]
    while not all(stream.finished for stream in streams):
        for part, chunk in zip(parts, decoder.step(streams), strict=True):
            part.append(chunk.mel)
    for i, config in enumerate(configs):
        alone = streamed_mel(small_decoder(**vars(config)), random_tokens(31), random_speaker(i))
        torch.testing.assert_close(torch.cat(parts[i]), alone, atol=1e-4, rtol=0)


def test_a_first_chunk_may_be_smaller_than_the_others() -> None:
    decoder = small_decoder(chunk=3, first_chunk=1)
    stream = decoder.open()
    assert len(stream.push(random_tokens(12))) == 24 * 160  # a block and one ahead
    assert len(stream.push(random_tokens(12))) == 0
    assert len(stream.push(random_tokens(6))) == 3 * 24 * 160


@pytest.mark.parametrize(
    "layout", [Layout(4, 24, (0, 2), (1,)), Layout(5, 12, (1,), (0, 1, 4)), Layout(2, 24, (), (1,))]
)
def test_at_full_lookahead_every_block_is_computed_once_in_every_evaluation(layout: Layout) -> None:
    steps = 3
    decoder = small_decoder(layout, steps=steps, lookahead=steps * int(layout.field.ahead) + 1)
    tokens = random_tokens(3 * layout.block_size + 1)
    blocks = -(-len(tokens) * 4 // layout.block_size)
    streamed_mel(decoder, tokens)
    assert decoder.cost.block_evaluations == pytest.approx(steps * blocks)


def test_the_wavefront_does_not_depend_on_pushes_or_on_other_streams() -> None:
    decoder = small_decoder(lookahead=4)
    speakers, lengths = [random_speaker(1), None, random_speaker(3)], [50, 3, 29]
    alone = [
        streamed_mel(decoder, random_tokens(n, n), speaker) for n, speaker in zip(lengths, speakers, strict=True)
    ]
    random = np.random.default_rng(0)
    streams = [decoder.open(speaker) for speaker in speakers]
    parts: list[list[Tensor]] = [[], [], []]
    left = [list(random_tokens(n, n).split(1 + int(random.integers(9)))) for n in lengths]
    while not all(stream.finished for stream in streams):
        for stream, more in zip(streams, left, strict=True):
            if more:
                stream.feed(more.pop(0))
            elif not stream.state.ended:
                stream.end()
        for part, chunk in zip(parts, decoder.step(streams), strict=True):
            part.append(chunk.mel)
    for mine, part in zip(alone, parts, strict=True):
        torch.testing.assert_close(torch.cat(part), mine, atol=1e-5, rtol=0)


def test_the_number_of_unfinished_blocks_is_bounded() -> None:
    decoder = small_decoder(lookahead=4)
    stream, counts = decoder.open(), []
    for number in range(10):
        stream.push(random_tokens(12, number))
        assert stream.state.wavefront is not None
        counts.append(len(stream.state.wavefront.blocks))
    assert len(set(counts[4:])) == 1 and counts[-1] <= 4


@torch.inference_mode()
def test_the_wavefront_extrapolates_the_frames_after_a_chunk() -> None:
    decoder = small_decoder(Layout(3, 24, (0,), (1,)), steps=6, lookahead=6)
    tokens = random_tokens(90)
    offline = decoder.decode_offline([tokens], [None])[0].mel
    stream = decoder.open()
    stream.feed(tokens)
    stream.accept_tokens()
    wavefront, state = Wavefront(decoder.engine.sampler(decoder.config)), stream.state
    while wavefront.unfinished([state]):
        wavefront.advance([state])
    assert state.wavefront is not None
    unextrapolated = decoder.model.to_mel(state.wavefront.blocks[1].solver.x)
    mel, after = wavefront.collect_chunk(state, 1)
    assert len(mel) == 24 and len(after) >= decoder.vocoder.right
    truth = offline[24:48]
    assert (after[:24] - truth).abs().mean() < 0.5 * (unextrapolated - truth).abs().mean()
