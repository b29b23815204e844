"""Many streams, threads and faults: no stream affects another one."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.state import DecodeConfig, StreamState
from sf_lightning.streaming.stream import Stream
from sf_lightning.vocoder.griffin_lim import GriffinLim
from tests.toys.networks import small_model
from tests.toys.streaming import SMALL_SR, random_speaker, random_tokens, small_decoder


def check_streams(decoder: StreamingDecoder, seed: int, count: int, longest: int) -> None:
    """Opens and ends `count` streams at random times and compares each with the same stream decoded alone."""
    random = np.random.default_rng(seed)
    tokens = [random_tokens(int(random.integers(1, longest)), seed + i) for i in range(count)]
    waves: list[list[Tensor]] = [[] for _ in tokens]
    left: dict[int, list[Tensor]] = {}
    live: dict[int, Stream] = {}
    coming = list(range(count))
    while coming or live:
        while coming and random.random() < 0.97:
            i = coming.pop()
            live[i] = decoder.open(random_speaker(i), replace(decoder.config, seed=i))
            left[i] = list(tokens[i].split(int(random.integers(1, 13))))
        for i, stream in live.items():
            if left[i] and random.random() < 0.9:
                stream.feed(left[i].pop(0))
            elif not left[i]:
                stream.end()
        for i, chunk in zip(live, decoder.step(list(live.values())), strict=True):
            waves[i].append(chunk.wave)
        live = {i: stream for i, stream in live.items() if not stream.finished}
    for i, mine in enumerate(tokens):
        (alone,) = decoder.decode([mine], [random_speaker(i)], replace(decoder.config, seed=i))
        assert len(mine) * 640 == len(alone.wave) and alone.wave.std() > 1e-4
        torch.testing.assert_close(torch.cat(waves[i]), alone.wave, atol=1e-3, rtol=0)


@pytest.mark.parametrize("lookahead", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_hundred_streams_equal_each_decoded_alone(lookahead: int) -> None:
    check_streams(small_decoder(lookahead=lookahead), lookahead, count=100, longest=20)


@pytest.mark.slow
@pytest.mark.parametrize("lookahead", [1, 4])
def test_a_hundred_streams_equal_each_decoded_alone_for_two_minutes(lookahead: int) -> None:
    end, seed = time.monotonic() + 120, 0
    while time.monotonic() < end:
        check_streams(small_decoder(lookahead=lookahead), seed, count=100, longest=120)
        seed += 1000


@pytest.mark.parametrize("config", [{"lookahead": 1}, {"lookahead": 4}, {"mode": "windowed"}])
def test_a_stream_with_nan_is_stopped_and_its_neighbors_are_unaffected(config: dict) -> None:
    decoder = small_decoder(**config)
    tokens = [random_tokens(30, i) % 49 for i in range(3)]
    tokens[1][20] = 49
    alone = [decoder.decode([tokens[i]], [random_speaker(i)])[0].wave for i in (0, 2)]
    with torch.no_grad():
        decoder.model.dit.tokens.table.weight[49] = torch.nan
    streams = [decoder.open(random_speaker(i)) for i in range(3)]
    for stream, utterance in zip(streams, tokens, strict=True):
        stream.feed(utterance)
        stream.end()
    waves: list[list[Tensor]] = [[], [], []]
    while not all(stream.finished for stream in streams):
        for mine, chunk in zip(waves, decoder.step(streams), strict=True):
            mine.append(chunk.wave)
    for mine, other in zip((waves[0], waves[2]), alone, strict=True):
        torch.testing.assert_close(torch.cat(mine), other, atol=1e-4, rtol=0)
    assert all(wave.isfinite().all() for wave in waves[1])
    with pytest.raises(
        FloatingPointError, match=r"the mel or the wave that ends with block .* contains NaN or infinity"
    ):
        streams[1].flush()


def test_a_stream_in_two_threads_is_refused_and_continues_in_one() -> None:
    decoder = small_decoder()
    stream, alone = decoder.open(), decoder.open()
    inside, go = threading.Event(), threading.Event()
    advance = decoder.engine.advance

    def slow(states: Sequence[StreamState]) -> list:
        inside.set()
        assert go.wait(10)
        return advance(states)

    decoder.engine.advance = slow  # type: ignore[method-assign]
    waves: list[Tensor] = []
    thread = threading.Thread(target=lambda: waves.append(stream.push(random_tokens(12))))
    thread.start()
    assert inside.wait(10)
    for call in (lambda: stream.push(random_tokens(6)), stream.flush, lambda: decoder.step([alone, stream])):
        with pytest.raises(RuntimeError, match="in use by another thread"):
            call()
    go.set()
    thread.join()
    decoder.engine.advance = advance  # type: ignore[method-assign]
    waves.append(stream.flush())
    assert torch.equal(torch.cat(waves), torch.cat([alone.push(random_tokens(12)), alone.flush()]))


def test_tokens_may_be_fed_in_one_thread_while_another_decodes() -> None:
    decoder = small_decoder()
    tokens = random_tokens(240)
    stream = decoder.open()

    def feed() -> None:
        for part in tokens.split(7):
            stream.feed(part)
        stream.end()

    thread = threading.Thread(target=feed)
    thread.start()
    waves = []
    while not stream.finished:
        waves.append(decoder.step([stream])[0].wave)
    thread.join()
    assert torch.equal(torch.cat(waves), decoder.decode([tokens], [None])[0].wave)


def test_a_stream_given_twice_or_of_another_decoder_is_refused_before_any_state_changes() -> None:
    decoder = small_decoder(lookahead=4)
    stream = decoder.open()
    stream.feed(random_tokens(60))
    with pytest.raises(RuntimeError, match="given twice"):
        decoder.step([stream, stream])
    with pytest.raises(ValueError, match="of another decoder"):
        small_decoder().step([stream])
    stream.end()
    alone = decoder.decode([random_tokens(60)], [None])[0].wave
    assert torch.equal(stream.flush(), alone)


class FailingVocoder(GriffinLim):
    """A vocoder that raises on the second chunk, or returns NaN for it."""

    calls, mode = 0, "raise"

    def extend(self, mel: Tensor, past: Tensor, num_new: int) -> Tensor:
        """Fails at the second call."""
        self.calls += 1
        if self.calls == 2 and self.mode == "raise":
            raise RuntimeError("out of memory")
        wave = super().extend(mel, past, num_new)
        return wave * torch.nan if self.calls == 2 else wave


@pytest.mark.parametrize(("mode", "error"), [("raise", "out of memory"), ("nan", "NaN or infinity")])
def test_good_audio_is_returned_before_the_error_is_raised(mode: str, error: str) -> None:
    vocoder = FailingVocoder(MelConfig(), 2)
    vocoder.mode = mode
    decoder = StreamingDecoder(small_model(SMALL_SR), vocoder, DecodeConfig(steps=2))
    stream = decoder.open()
    assert len(stream.push(random_tokens(60))) == 24 * 160
    assert stream.finished
    for call in (lambda: stream.push(random_tokens(6)), stream.flush):
        with pytest.raises((RuntimeError, FloatingPointError), match=error):
            call()
    with pytest.raises((RuntimeError, FloatingPointError)):
        vocoder.calls = 0
        decoder.decode([random_tokens(60)], [None])


def test_streams_with_other_settings_continue_where_some_fail() -> None:
    vocoder = FailingVocoder(MelConfig(), 2)
    decoder = StreamingDecoder(small_model(SMALL_SR), vocoder, DecodeConfig(steps=2))
    vocoder.calls = 9
    alone = decoder.decode([random_tokens(30)], [None], DecodeConfig(steps=3))[0].wave
    vocoder.calls = 0
    streams = [decoder.open(None, DecodeConfig(steps=steps)) for steps in (3, 2)]
    waves = []
    for stream in streams:
        stream.feed(random_tokens(30))
        stream.end()
    while not all(stream.finished for stream in streams):
        waves.append(decoder.step(streams)[0].wave)
    assert torch.equal(torch.cat(waves), alone) and streams[1].state.error is not None


@pytest.mark.parametrize("lookahead", [1, 4])
def test_a_stream_in_a_batch_keeps_no_memory_of_the_others(lookahead: int) -> None:
    decoder, held = small_decoder(lookahead=lookahead), []
    for crowd in (1, 30):
        streams = [decoder.open(random_speaker(i)) for i in range(crowd)]
        for stream in streams:
            stream.feed(random_tokens(48))
        decoder.step(streams)
        state = streams[0].state
        blocks = state.wavefront.blocks.values() if state.wavefront else ()
        parts = [part for b in blocks for part in (b.condition, b.h, b.kv, b.velocity, b.valid, b.solver.x)]
        parts += [state.cache, state.vocoder.mel, state.vocoder.wave]
        held.append(sum(part.untyped_storage().nbytes() for part in parts if part is not None))
    assert held[0] == held[1]
