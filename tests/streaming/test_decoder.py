"""Streams: the same wave however tokens are pushed, whoever else is decoded, whatever comes later."""

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
def test_any_way_of_cutting_the_pushes_gives_the_same_wave(length: int, chunk: int) -> None:
    decoder = small_decoder(chunk=chunk)
    given = random_tokens(length)
    stream = decoder.open(random_speaker())
    whole = torch.cat([stream.push(given), stream.flush()])
    assert len(whole) == length * 640
    assert whole.abs().mean() > 1e-4
    random = np.random.default_rng(0)
    for _ in range(3):
        cuts = np.sort(random.integers(0, length + 1, 5))
        stream = decoder.open(random_speaker())
        waves = [stream.push(part) for part in torch.tensor_split(given, torch.from_numpy(cuts))]
        assert torch.equal(torch.cat([*waves, stream.flush()]), whole)


def test_sound_comes_as_soon_as_the_chunk_and_its_lookahead_are_there() -> None:
    decoder = small_decoder()
    stream = decoder.open()
    assert len(stream.push(random_tokens(11))) == 0
    assert len(stream.push(random_tokens(1))) == 24 * 160  # two blocks of tokens: one to say, one ahead
    assert len(stream.push(random_tokens(6))) == 24 * 160
    assert len(stream.flush()) == 24 * 160


def test_a_layout_that_never_looks_ahead_or_back_streams_exactly_offline() -> None:
    given, who = random_tokens(40), random_speaker()
    decoder = small_decoder(Layout(3, 24, (), ()))
    torch.testing.assert_close(
        streamed_mel(decoder, given, who), decoder.decode_offline([given], [who])[0].mel, atol=1e-4, rtol=0
    )


def test_one_evaluation_streams_exactly_offline_for_the_field_is_the_whole_dependence() -> None:
    given, who = random_tokens(64), random_speaker()
    for layout in (SMALL_SR, Layout(4, 24, (0, 1, 3), (0, 2)), Layout(2, 24, (), (), "past")):
        decoder = small_decoder(layout, steps=1)
        difference = streamed_mel(decoder, given, who) - decoder.decode_offline([given], [who])[0].mel
        assert difference.abs().max() < 1e-4


def test_several_evaluations_differ_from_offline_and_less_with_more_lookahead() -> None:
    given, who = random_tokens(64), random_speaker()
    gaps = []
    for lookahead in (1, 4):
        decoder = small_decoder(Layout(4, 24, (), (1,)), lookahead=lookahead)
        gaps.append(
            float((streamed_mel(decoder, given, who) - decoder.decode_offline([given], [who])[0].mel).abs().mean())
        )
    assert gaps[0] > 10 * gaps[1]


def test_streams_side_by_side_give_what_each_gives_alone() -> None:
    decoder = small_decoder()
    given = [random_tokens(20, 1), random_tokens(33, 2), random_tokens(6, 3)]
    whos = [random_speaker(1), None, random_speaker(3)]
    streams = [decoder.open(who, replace(decoder.config, seed=i)) for i, who in enumerate(whos)]
    for stream, each in zip(streams, given, strict=True):
        stream.feed(each)
        stream.end()
    parts: list[list[Tensor]] = [[], [], []]
    while not all(stream.finished for stream in streams):
        for part, chunk in zip(parts, decoder.step(streams), strict=True):
            part.append(chunk.mel)
    for i, each in enumerate(given):
        stream = decoder.open(whos[i], replace(decoder.config, seed=i))
        stream.feed(each)
        stream.end()
        alone = []
        while not stream.finished:
            alone.append(decoder.step([stream])[0].mel)
        torch.testing.assert_close(torch.cat(parts[i]), torch.cat(alone), atol=1e-4, rtol=0)


def test_what_was_heard_does_not_depend_on_what_comes_later() -> None:
    decoder = small_decoder()
    first, others = random_tokens(24), [random_tokens(12, 5), random_tokens(12, 6)]
    heard = []
    for other in others:
        stream = decoder.open()
        heard.append(stream.push(first))
        stream.push(other)
    assert len(heard[0]) == 3 * 24 * 160 and torch.equal(*heard)


def test_speaker_seed_and_tokens_all_change_the_sound() -> None:
    decoder = small_decoder()
    base = streamed_mel(decoder, random_tokens(12), random_speaker())
    assert not torch.allclose(base, streamed_mel(decoder, random_tokens(12, 9), random_speaker()), atol=1e-2)
    assert not torch.allclose(base, streamed_mel(decoder, random_tokens(12), random_speaker(9)), atol=1e-2)
    assert not torch.allclose(base, streamed_mel(decoder, random_tokens(12), None), atol=1e-2)
    other_seed = small_decoder(seed=1)
    assert not torch.allclose(base, streamed_mel(other_seed, random_tokens(12), random_speaker()), atol=1e-2)


def test_a_long_stream_keeps_no_more_than_a_short_one() -> None:
    decoder = small_decoder()
    stream = decoder.open()
    sizes = []
    for i in range(12):
        stream.push(random_tokens(18, i))
        state = stream.state
        sizes.append((len(state.tokens), len(state.mel), len(state.wave)))
    assert len(set(sizes[3:])) == 1
    assert stream.state.tokens.untyped_storage().nbytes() <= 8 * 6 * 8


def test_block_evaluations_are_those_of_the_windows() -> None:
    decoder = small_decoder(mode="windowed")
    streamed_mel(decoder, random_tokens(30))
    # Five blocks, p = 2, q = 1: windows of 2, 3, 4, 4 and, at the end without a future, 3.
    assert decoder.cost.block_evaluations == 4 * (2 + 3 + 4 + 4 + 3)


def test_a_stream_shorter_than_a_block_still_gives_its_sound_and_an_empty_one_gives_none() -> None:
    decoder = small_decoder()
    stream = decoder.open()
    assert len(stream.push(random_tokens(2))) == 0
    assert len(stream.flush()) == 2 * 640
    assert len(decoder.open().flush()) == 0


def test_the_latency_account_adds_up() -> None:
    decoder = small_decoder(chunk=2)
    account = measure_latency(decoder, random_tokens(40), None)
    assert account.wait_ms == 720  # two blocks and one ahead
    assert account.first_packet_ms == pytest.approx(account.wait_ms + account.network_ms + account.vocoder_ms)
    assert account.num_evaluations == 4 and account.real_time_factor > 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.tensor([0, 50]), "token 50 is outside the vocabulary of 50 codes"),
        (torch.tensor([-1, 3]), "token -1 is outside"),
        (torch.tensor([1.5]), "wanted whole numbers"),
        (torch.zeros(2, 3, dtype=torch.long), r"tokens of shape \[2, 3\]"),
    ],
)
def test_tokens_that_cannot_be_are_refused_and_the_stream_lives_on(given: Tensor, said: str) -> None:
    decoder = small_decoder()
    stream = decoder.open()
    stream.push(random_tokens(12))
    with pytest.raises(ValueError, match=said):
        stream.push(given)
    assert len(stream.flush()) == 24 * 160


def test_a_push_after_the_flush_and_a_wrong_speaker_are_refused() -> None:
    decoder = small_decoder()
    stream = decoder.open()
    stream.flush()
    with pytest.raises(ValueError, match="was flushed: open a new one"):
        stream.push(random_tokens(1))
    with pytest.raises(ValueError, match=r"shape \[3\]: wanted \[8\]"):
        decoder.open(torch.zeros(3))
    with pytest.raises(ValueError, match=r"shape \[3\]: wanted \[8\]"):
        decoder.decode_offline([random_tokens(6)], [torch.zeros(3)])
    with pytest.raises(ValueError, match="NaN or infinity"):
        decoder.open(torch.full((8,), float("nan")))
    with pytest.raises(ValueError, match="no tokens"):
        decoder.decode_offline([random_tokens(0)], [None])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"lookahead": -1}, "lookahead is -1"),
        ({"method": "heun"}, "'heun': wanted one"),
        ({"mode": "live"}, "'live': wanted cached, windowed or offline"),
        ({"seed": -1}, "decode.seed is -1: wanted 0 or more"),
        ({"guidance": math.nan}, "decode.guidance is nan"),
        ({"temperature": -0.5}, "decode.temperature is -0.5"),
        ({"sway": math.inf}, "decode.sway is inf"),
    ],
)
def test_decoding_that_cannot_be_is_refused(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DecodeConfig(**change)


def test_baselines_without_bound_stream_too() -> None:
    for unbounded in ("past", "all"):
        layout = Layout(2, 24, (), (), unbounded)
        mel = streamed_mel(small_decoder(layout), random_tokens(40))
        assert mel.shape == (160, 80) and math.isfinite(float(mel.sum()))
