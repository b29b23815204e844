"""First-packet latency and real-time factor of one stream."""

import statistics
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.state import DecodeCost


@dataclass(frozen=True)
class LatencyReport:
    """Latency of one stream, decoded without others; times except `wait_ms` are measured on this machine.

    Attributes:
        wait_ms: Time in ms until the tokens of the first chunk and its look-ahead have arrived, at the token rate.
        network_ms: Time in ms of the flow for the first chunk after its last token: conditions, network, solver.
        vocoder_ms: Time in ms of the vocoder for the first chunk.
        first_packet_ms: Sum of the three. Tokenizer and language model are not included.
        real_time_factor: Seconds of computation for a second of audio, over the whole stream.
        num_evaluations: Network evaluations (NFE) of a chunk.
        chunk_ms: Computation time in ms of each chunk, in order; shows whether it grows with the past.
    """

    wait_ms: float
    network_ms: float
    vocoder_ms: float
    first_packet_ms: float
    real_time_factor: float
    num_evaluations: int
    chunk_ms: tuple[float, ...]

    def values(self) -> dict[str, float]:
        """Returns the values by name as single numbers for a tracker; `chunk_ms` is the median of the chunks."""
        values: dict[str, Any] = {**vars(self), "chunk_ms": statistics.median(self.chunk_ms)}
        return {name: float(value) for name, value in values.items()}


def measure_latency(
    decoder: StreamingDecoder, tokens: Tensor, speaker: Tensor | None, token_rate: float | None = None
) -> LatencyReport:
    """Returns the latency of a stream of tokens [L] that is decoded without others.

    Args:
        decoder: Decoder; its config applies.
        tokens: Tokens of a clip, int64 [L].
        speaker: Speaker embedding [S], or None for no speaker.
        token_rate: Tokens per second that the source of the tokens produces; by default those of real time.

    Raises:
        ValueError: if the rate is not positive, or there are no tokens.
    """
    model = decoder.model
    rate = token_rate or model.mel.config.frame_rate / model.dit.config.frames_per_token
    if rate <= 0:
        raise ValueError(f"--token_rate is {token_rate}: expected tokens per second, more than 0")
    if len(tokens) == 0:
        raise ValueError("the stream has no tokens: latency needs at least one")
    stream = decoder.open(speaker)
    cost, first = stream.state.cost, None
    chunk_ms, samples = list[float](), 0
    # One block at a time, as in real time: what is computed while later tokens arrive delays no packet.
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
            stream.raise_error()
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
    """Returns a latency report as one sentence."""
    return (
        f"first packet {latency.first_packet_ms:.0f} ms = {latency.wait_ms:.0f} waiting for tokens "
        f"+ {latency.network_ms:.0f} network + {latency.vocoder_ms:.0f} vocoder; "
        f"{latency.num_evaluations} network evaluations, "
        f"{statistics.median(latency.chunk_ms):.0f} ms per chunk; real-time factor {latency.real_time_factor:.2f}"
    )
