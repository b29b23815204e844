"""Streams in crowds, in threads, and with faults: what one stream meets no other hears."""

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
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.streaming.stream import Stream
from sf_lightning.vocoder.griffin_lim import GriffinLim
from tests.toys.networks import small_model
from tests.toys.streaming import SMALL_SR, random_speaker, random_tokens, small_decoder


def talk(decoder: StreamingDecoder, seed: int, count: int, longest: int) -> None:
    """Lets so many streams come and go at random, all of them there at once for a while, and compares each."""
    random = np.random.default_rng(seed)
    given = [random_tokens(int(random.integers(1, longest)), seed + i) for i in range(count)]
    heard: list[list[Tensor]] = [[] for _ in given]
    left: dict[int, list[Tensor]] = {}
    live: dict[int, Stream] = {}
    coming = list(range(count))
    while coming or live:
        while coming and random.random() < 0.97:
            i = coming.pop()
            live[i] = decoder.open(random_speaker(i), replace(decoder.config, seed=i))
            left[i] = list(given[i].split(int(random.integers(1, 13))))
        for i, stream in live.items():
            if left[i] and random.random() < 0.9:
                stream.feed(left[i].pop(0))
            elif not left[i]:
                stream.end()
        for i, chunk in zip(live, decoder.step(list(live.values())), strict=True):
            heard[i].append(chunk.wave)
        live = {i: stream for i, stream in live.items() if not stream.finished}
    for i, mine in enumerate(given):
        (alone,) = decoder.decode([mine], [random_speaker(i)], replace(decoder.config, seed=i))
        assert len(mine) * 640 == len(alone.wave) and alone.wave.std() > 1e-4
        torch.testing.assert_close(torch.cat(heard[i]), alone.wave, atol=1e-3, rtol=0)


@pytest.mark.parametrize("lookahead", [1, 4])
def test_a_hundred_streams_that_come_and_go_sound_as_each_does_alone(lookahead: int) -> None:
    talk(small_decoder(lookahead=lookahead), lookahead, count=100, longest=20)


@pytest.mark.slow
@pytest.mark.parametrize("lookahead", [1, 4])
def test_a_hundred_streams_sound_as_each_does_alone_for_two_minutes(lookahead: int) -> None:
    end, seed = time.monotonic() + 120, 0
    while time.monotonic() < end:
        talk(small_decoder(lookahead=lookahead), seed, count=100, longest=120)
        seed += 1000


@pytest.mark.parametrize("config", [{"lookahead": 1}, {"lookahead": 4}, {"mode": "windowed"}])
def test_a_stream_that_meets_nan_is_stopped_and_its_neighbours_are_untouched(config: dict) -> None:
    decoder = small_decoder(**config)
    given = [random_tokens(30, i) % 49 for i in range(3)]
    given[1][20] = 49
    alone = [decoder.decode([given[i]], [random_speaker(i)])[0].wave for i in (0, 2)]
    with torch.no_grad():
        decoder.model.dit.tokens.table.weight[49] = torch.nan
    streams = [decoder.open(random_speaker(i)) for i in range(3)]
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
    with pytest.raises(FloatingPointError, match="NaN or infinity in the mel or the wave that ends with block"):
        streams[1].flush()


def test_a_stream_in_two_threads_is_refused_and_goes_on_in_one() -> None:
    decoder = small_decoder()
    stream, alone = decoder.open(), decoder.open()
    inside, go = threading.Event(), threading.Event()
    advance = decoder.advance

    def slow(streams: Sequence[Stream]) -> list:
        inside.set()
        assert go.wait(10)
        return advance(streams)

    decoder.advance = slow  # type: ignore[method-assign]
    waves: list[Tensor] = []
    thread = threading.Thread(target=lambda: waves.append(stream.push(random_tokens(12))))
    thread.start()
    assert inside.wait(10)
    for call in (lambda: stream.push(random_tokens(6)), stream.flush, lambda: decoder.step([alone, stream])):
        with pytest.raises(RuntimeError, match="in use by another thread"):
            call()
    go.set()
    thread.join()
    decoder.advance = advance  # type: ignore[method-assign]
    waves.append(stream.flush())
    assert torch.equal(torch.cat(waves), torch.cat([alone.push(random_tokens(12)), alone.flush()]))


def test_tokens_may_be_fed_in_one_thread_while_another_decodes() -> None:
    decoder = small_decoder()
    given = random_tokens(240)
    stream = decoder.open()

    def feed() -> None:
        for part in given.split(7):
            stream.feed(part)
        stream.end()

    thread = threading.Thread(target=feed)
    thread.start()
    heard = []
    while not stream.finished:
        heard.append(decoder.step([stream])[0].wave)
    thread.join()
    assert torch.equal(torch.cat(heard), decoder.decode([given], [None])[0].wave)


def test_a_stream_given_twice_or_of_another_decoder_is_refused_before_anything_moves() -> None:
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


class Loud(GriffinLim):
    """A vocoder that fails on the second chunk, or answers it with NaN."""

    calls, how = 0, "raise"

    def extend(self, mel: Tensor, past: Tensor, num_new: int) -> Tensor:
        """Fails the second time."""
        self.calls += 1
        if self.calls == 2 and self.how == "raise":
            raise RuntimeError("out of memory")
        wave = super().extend(mel, past, num_new)
        return wave * torch.nan if self.calls == 2 else wave


@pytest.mark.parametrize(("how", "error"), [("raise", "out of memory"), ("nan", "NaN or infinity")])
def test_what_was_good_is_heard_before_the_error_is_raised(how: str, error: str) -> None:
    vocoder = Loud(MelConfig(), 2)
    vocoder.how = how
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


def test_streams_that_are_decoded_otherwise_go_on_where_some_fail() -> None:
    vocoder = Loud(MelConfig(), 2)
    decoder = StreamingDecoder(small_model(SMALL_SR), vocoder, DecodeConfig(steps=2))
    vocoder.calls = 9
    alone = decoder.decode([random_tokens(30)], [None], DecodeConfig(steps=3))[0].wave
    vocoder.calls = 0
    streams = [decoder.open(None, DecodeConfig(steps=steps)) for steps in (3, 2)]
    heard = []
    for stream in streams:
        stream.feed(random_tokens(30))
        stream.end()
    while not all(stream.finished for stream in streams):
        heard.append(decoder.step(streams)[0].wave)
    assert torch.equal(torch.cat(heard), alone) and streams[1].state.error is not None


@pytest.mark.parametrize("lookahead", [1, 4])
def test_a_stream_in_a_crowd_keeps_nothing_of_the_others(lookahead: int) -> None:
    decoder, held = small_decoder(lookahead=lookahead), []
    for crowd in (1, 30):
        streams = [decoder.open(random_speaker(i)) for i in range(crowd)]
        for stream in streams:
            stream.feed(random_tokens(48))
        decoder.step(streams)
        state = streams[0].state
        flights = state.front.flights.values() if state.front else ()
        parts = [
            part for each in flights for part in (each.condition, each.h, each.seen, each.velocity, each.valid)
        ]
        parts += [state.memory, state.mel, state.wave]
        held.append(sum(part.untyped_storage().nbytes() for part in parts if part is not None))
    assert held[0] == held[1]
