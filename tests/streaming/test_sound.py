"""Streams through a vocoder with weights, in crowds, and with faults: what one stream meets no other hears."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.layout import Layout
from sf_lightning.streaming.decoder import Stream, StreamingDecoder
from sf_lightning.streaming.latency import measure_latency
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.bigvgan import BigVGANVocoder
from sf_lightning.vocoder.griffin_lim import GriffinLim
from tests.helpers import small_model
from tests.streaming.test_decoder import SR, make, speaker, tokens


def with_bigvgan(path: Path, layout: Layout, **config: object) -> StreamingDecoder:
    """A small decoder with BigVGAN, four evaluations."""
    vocoder = BigVGANVocoder.from_checkpoint(path, MelConfig())
    return StreamingDecoder(small_model(layout), vocoder, DecodeConfig(**{"steps": 4, **config}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layout", "config"),
    [
        (SR, {"lookahead": 4}),
        (SR, {"lookahead": 6, "chunk": 2, "first_chunk": 1}),
        (Layout(4, 24, (0, 2), ()), {}),
        (Layout(4, 8, (0, 2), (1,)), {"lookahead": 4}),
    ],
)
@pytest.mark.parametrize("length", [3, 61])
def test_tokens_to_bigvgan_s_sound_streamed_equals_offline(
    bigvgan: Path,
    layout: Layout,
    config: dict,
    length: int,
) -> None:
    decoder = with_bigvgan(bigvgan, layout, exact_vocoder=True, **config)
    given, who = tokens(length), speaker()
    offline = decoder.offline([given], [who])[0].wave
    stream = decoder.open(who)
    streamed = torch.cat([*(stream.push(part) for part in given.split(5)), stream.flush()])
    assert offline.abs().mean() > 1e-3
    torch.testing.assert_close(streamed, offline, atol=1e-4, rtol=0)


def test_a_provisional_right_context_is_heard_sooner_and_is_close(bigvgan: Path) -> None:
    exact, soon = (with_bigvgan(bigvgan, SR, lookahead=2, exact_vocoder=which) for which in (True, False))
    given = tokens(61)
    waits = [measure_latency(decoder, given, None).wait_ms for decoder in (exact, soon)]
    assert waits[1] == 3 * 240 and waits[0] > waits[1]
    waves = [decoder.streamed([given], [None])[0].wave for decoder in (exact, soon)]
    assert 0 < (waves[0] - waves[1]).abs().mean() < 0.2 * waves[0].abs().mean()


@pytest.mark.parametrize("lookahead", [1, 4])
def test_a_hundred_streams_that_come_and_go_sound_as_each_does_alone(lookahead: int) -> None:
    decoder = make(lookahead=lookahead)
    random = np.random.default_rng(lookahead)
    waiting = [(i, tokens(int(random.integers(1, 60)), i)) for i in range(100)]
    heard: dict[int, list[Tensor]] = {i: [] for i, _ in waiting}
    left: dict[int, list[Tensor]] = {}
    live: dict[int, Stream] = {}
    given = dict(waiting)
    while waiting or live:
        while waiting and len(live) < 40 and random.random() < 0.8:
            i, mine = waiting.pop()
            live[i] = decoder.open(speaker(i), replace(decoder.config, seed=i))
            left[i] = list(mine.split(int(random.integers(1, 13))))
        for i, stream in live.items():
            if left[i] and random.random() < 0.9:
                stream.feed(left[i].pop(0))
            elif not left[i] and not stream.state.ended:
                stream.end()
        for i, chunk in zip(live, decoder.step(list(live.values())), strict=True):
            heard[i].append(chunk.wave)
        live = {i: stream for i, stream in live.items() if not stream.finished}
    for i, mine in given.items():
        (alone,) = decoder.streamed([mine], [speaker(i)], replace(decoder.config, seed=i))
        assert len(mine) * 640 == len(alone.wave) and alone.wave.std() > 1e-4
        torch.testing.assert_close(torch.cat(heard[i]), alone.wave, atol=1e-3, rtol=0)


@pytest.mark.parametrize("config", [{"lookahead": 1}, {"lookahead": 4}, {"mode": "windowed"}])
def test_a_stream_that_meets_nan_is_stopped_and_its_neighbours_are_untouched(config: dict) -> None:
    decoder = make(**config)
    given = [tokens(30, i) % 49 for i in range(3)]
    given[1][20] = 49
    alone = [decoder.streamed([given[i]], [speaker(i)])[0].wave for i in (0, 2)]
    with torch.no_grad():
        decoder.model.dit.tokens.table.weight[49] = torch.nan
    streams = [decoder.open(speaker(i)) for i in range(3)]
    for stream, each in zip(streams, given, strict=True):
        stream.feed(each)
        stream.end()
    waves: list[list[Tensor]] = [[], [], []]
    while not all(stream.finished for stream in streams):
        for mine, chunk in zip(waves, decoder.step(streams), strict=True):
            mine.append(chunk.wave)
    for mine, other in zip((waves[0], waves[2]), alone, strict=True):
        torch.testing.assert_close(torch.cat(mine), other, atol=1e-4, rtol=0)
    assert all(wave.isfinite().all() for wave in waves[1])
    with pytest.raises(FloatingPointError, match=r"blocks .* NaN or infinity"):
        streams[1].flush()


def test_a_stream_in_two_threads_is_refused_and_goes_on_in_one() -> None:
    decoder = make()
    stream, alone = decoder.open(), decoder.open()
    inside, go = threading.Event(), threading.Event()
    step = decoder.step

    def slow(streams: list[Stream]) -> list:
        inside.set()
        assert go.wait(10)
        return step(streams)

    decoder.step = slow  # type: ignore[method-assign, assignment]
    waves: list[Tensor] = []
    thread = threading.Thread(target=lambda: waves.append(stream.push(tokens(12))))
    thread.start()
    assert inside.wait(10)
    for call in (lambda: stream.push(tokens(6)), stream.flush):
        with pytest.raises(RuntimeError, match="in use by another thread"):
            call()
    go.set()
    thread.join()
    decoder.step = step  # type: ignore[method-assign]
    waves.append(stream.flush())
    assert torch.equal(torch.cat(waves), torch.cat([alone.push(tokens(12)), alone.flush()]))


def test_an_empty_push_is_no_push() -> None:
    stream, other = (make().open() for _ in range(2))
    nothing = torch.zeros(0, dtype=torch.long)
    pushed = [stream.push(nothing), stream.push(tokens(12)), stream.push(nothing), stream.flush()]
    assert [len(wave) for wave in pushed] == [0, 24 * 160, 0, 24 * 160]
    assert torch.equal(torch.cat(pushed), torch.cat([other.push(tokens(12)), other.flush()]))


@pytest.mark.parametrize("lookahead", [1, 4])
def test_weights_in_bf16_sound_like_those_in_fp32(lookahead: int) -> None:
    given, who = tokens(40), speaker()
    mels = []
    for dtype in (torch.float32, torch.bfloat16):
        model = small_model(SR)
        model.dit.to(dtype)
        decoder = StreamingDecoder(model, GriffinLim(MelConfig(), 2), DecodeConfig(steps=4, lookahead=lookahead))
        mels.append(decoder.streamed([given], [who])[0].mel)
    assert mels[1].dtype == torch.float32
    assert 0 < (mels[0] - mels[1]).abs().mean() < 0.02 * mels[0].std()
