"""When the first packet leaves, and what a second of sound costs: an account of one stream."""

import statistics
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.state import DecodeCost


@dataclass(frozen=True)
class LatencyReport:
    """The account of one stream, decoded alone; all but the first in milliseconds of this machine.

    Attributes:
        wait_ms: Until the tokens are there that the first chunk needs, at the rate at which they come.
        network_ms: The flow of the first chunk, once its last token is there: conditions, network, solver.
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
) -> LatencyReport:
    """Streams tokens [L] through a decoder by themselves and accounts for the time.

    Args:
        decoder: What decodes.
        tokens: Of a clip.
        speaker: Embedding [S], or None.
        token_rate: Tokens a second that whoever makes them makes; by default as many as are spoken.

    Raises:
        ValueError: if the rate is not positive, or there are no tokens.
    """
    model = decoder.model
    spoken_rate = model.mel.config.frame_rate / model.dit.config.frames_per_token
    rate = token_rate or spoken_rate
    if rate <= 0:
        raise ValueError(f"--token_rate is {token_rate}: wanted tokens a second, more than 0")
    if len(tokens) == 0:
        raise ValueError("a stream of no tokens has no latency: give some")
    stream = decoder.open(speaker)
    cost, first = stream.state.cost, None
    chunk_ms, samples = list[float](), 0
    # A block at a time, as they come: nobody waits for what is computed while later tokens are on their way.
    pieces = tokens.split(decoder.tokens_per_block)
    before = _milliseconds(cost)
    for number, piece in enumerate(pieces, 1):
        stream.feed(piece)
        arrived = _milliseconds(cost)
        if number == len(pieces):
            stream.end()
        emitted = -1
        while emitted != stream.state.emitted or (number == len(pieces) and not stream.finished):
            emitted = stream.state.emitted
            new = len(decoder.step([stream])[0].wave)
            stream.require_sound()
            now = _milliseconds(cost)
            if new and first is None:
                wait = 1000 * min(len(tokens), number * decoder.tokens_per_block) / rate
                first = wait, now[0] - arrived[0], now[1] - arrived[1]
            if emitted != stream.state.emitted or new:
                chunk_ms.append(sum(now) - sum(before))
                before = now
            samples += new
    assert first is not None
    return LatencyReport(
        wait_ms=first[0],
        network_ms=first[1],
        vocoder_ms=first[2],
        first_packet_ms=sum(first),
        real_time_factor=sum(_milliseconds(cost)) / 1000 * decoder.vocoder.sample_rate / samples,
        num_evaluations=decoder.config.num_evaluations,
        chunk_ms=tuple(chunk_ms),
    )


def _milliseconds(cost: DecodeCost) -> tuple[float, float]:
    return 1000 * cost.network_seconds, 1000 * cost.vocoder_seconds


def latency_summary(latency: LatencyReport) -> str:
    """The latency account in a sentence."""
    return (
        f"first packet {latency.first_packet_ms:.0f} ms = {latency.wait_ms:.0f} waiting for tokens "
        f"+ {latency.network_ms:.0f} network + {latency.vocoder_ms:.0f} vocoder; "
        f"{latency.num_evaluations} network evaluations, "
        f"{statistics.median(latency.chunk_ms):.0f} ms for a chunk; real-time factor {latency.real_time_factor:.2f}"
    )
