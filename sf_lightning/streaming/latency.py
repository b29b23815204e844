"""When the first packet leaves, and what a second of sound costs: an account of one stream."""

import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from sf_lightning.streaming.decoder import StreamingDecoder


@dataclass(frozen=True)
class Latency:
    """The account of one stream, decoded alone; all but the first in milliseconds of this machine.

    Attributes:
        wait_ms: Until the tokens are there that the first chunk needs, at the rate at which they come.
        network_ms: The flow of the first chunk: conditions, network, solver.
        vocoder_ms: The vocoder of the first chunk.
        first_packet_ms: The three together. The tokenizer and the language model are not in it.
        real_time_factor: Seconds of computing for a second of sound, over the whole stream.
        num_evaluations: Network evaluations (NFE) of a chunk.
        chunk_ms: Computing of each chunk, in order: whether it grows with what came before.
    """

    wait_ms: float
    network_ms: float
    vocoder_ms: float
    first_packet_ms: float
    real_time_factor: float
    num_evaluations: int
    chunk_ms: tuple[float, ...]

    def values(self) -> dict[str, float]:
        """Returns what a tracker can draw as curves, by name; of the chunks their median."""
        values: dict[str, Any] = {**vars(self), "chunk_ms": statistics.median(self.chunk_ms)}
        return {name: float(value) for name, value in values.items()}


def measure_latency(
    decoder: StreamingDecoder, tokens: Tensor, speaker: Tensor | None, token_rate: float | None = None
) -> Latency:
    """Streams tokens [L] through a decoder by themselves and accounts for the time.

    Args:
        decoder: What decodes.
        tokens: Of a clip.
        speaker: Embedding [S], or None.
        token_rate: Tokens a second that whoever makes them makes; by default as many as are spoken.

    Raises:
        ValueError: if the rate is not positive, or there are no tokens.
    """
    if token_rate is not None and token_rate <= 0:
        raise ValueError(f"--token_rate is {token_rate}: wanted tokens a second, more than 0")
    if len(tokens) == 0:
        raise ValueError("a stream of no tokens has no latency: give some")
    model, config = decoder.model, decoder.config
    stream = decoder.open(speaker)
    stream.feed(tokens)
    stream.end()
    clock, samples, emitted = [_milliseconds(decoder)], [0], [0]
    while not stream.finished:
        samples.append(len(decoder.step([stream])[0].wave))
        emitted.append(stream.state.emitted)
        clock.append(_milliseconds(decoder))
    stream.require_sound()
    # With an exact vocoder the first chunk may be silent: the first packet is that of the first sound.
    first = next(i for i, count in enumerate(samples) if count)
    network, vocoder = (now - then for now, then in zip(clock[first], clock[0], strict=True))
    chunk_ms = tuple(sum(now) - sum(then) for then, now in pairwise(clock))
    spoken_rate = model.mel.config.frame_rate / model.dit.config.frames_per_token
    wait = model.layout.wait_ms(emitted[first], config.lookahead, model.mel.config.frame_rate)
    wait *= spoken_rate / (token_rate or spoken_rate)
    return Latency(
        wait_ms=wait,
        network_ms=network,
        vocoder_ms=vocoder,
        first_packet_ms=wait + network + vocoder,
        real_time_factor=sum(chunk_ms) / 1000 * decoder.vocoder.sample_rate / sum(samples),
        num_evaluations=config.num_evaluations,
        chunk_ms=chunk_ms,
    )


def _milliseconds(decoder: StreamingDecoder) -> tuple[float, float]:
    return 1000 * decoder.account.network_seconds, 1000 * decoder.account.vocoder_seconds


def latency_line(latency: Latency) -> str:
    """The latency account in a sentence."""
    return (
        f"first packet {latency.first_packet_ms:.0f} ms = {latency.wait_ms:.0f} waiting for tokens "
        f"+ {latency.network_ms:.0f} network + {latency.vocoder_ms:.0f} vocoder; "
        f"{latency.num_evaluations} network evaluations, "
        f"{statistics.median(latency.chunk_ms):.0f} ms for a chunk; real-time factor {latency.real_time_factor:.2f}"
    )
