"""When the first packet leaves, and what a second of sound costs: an account of one stream."""

from dataclasses import dataclass

from torch import Tensor

from sf_lightning.streaming.decoder import StreamingDecoder


@dataclass(frozen=True)
class Latency:
    """The account of one stream, decoded alone; all but the first in milliseconds of this machine.

    Attributes:
        wait_ms: Speech whose tokens must have arrived before the first chunk can be decoded, at the token rate.
        network_ms: The flow of the first chunk: conditions, network, solver.
        vocoder_ms: The vocoder of the first chunk.
        first_packet_ms: The three together. The tokenizer and the language model are not in it.
        real_time_factor: Seconds of computing for a second of sound, over the whole stream.
        num_evaluations: Network evaluations (NFE) of a chunk.
    """

    wait_ms: float
    network_ms: float
    vocoder_ms: float
    first_packet_ms: float
    real_time_factor: float
    num_evaluations: int


def measure_latency(decoder: StreamingDecoder, tokens: Tensor, speaker: Tensor | None) -> Latency:
    """Streams tokens [L] through a decoder by themselves and accounts for the time."""
    model, config = decoder.model, decoder.config
    before = _seconds(decoder)
    stream = decoder.open(speaker)
    stream.feed(tokens)
    stream.end()
    samples = len(decoder.step([stream])[0].wave)
    first = _seconds(decoder)
    while not stream.finished:
        samples += len(decoder.step([stream])[0].wave)
    spent = sum(_seconds(decoder)) - sum(before)
    network, vocoder = (1000 * (now - then) for now, then in zip(first, before, strict=True))
    wait = model.layout.wait_ms(config.first_chunk or config.chunk, config.lookahead, model.mel.config.frame_rate)
    return Latency(
        wait_ms=wait,
        network_ms=network,
        vocoder_ms=vocoder,
        first_packet_ms=wait + network + vocoder,
        real_time_factor=spent * decoder.vocoder.sample_rate / samples,
        num_evaluations=config.num_evaluations,
    )


def _seconds(decoder: StreamingDecoder) -> tuple[float, float]:
    return decoder.account.network_seconds, decoder.account.vocoder_seconds
