"""When the first packet leaves, and what a second of sound costs: an account of one stream."""

from dataclasses import dataclass

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
    """

    wait_ms: float
    network_ms: float
    vocoder_ms: float
    first_packet_ms: float
    real_time_factor: float
    num_evaluations: int


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
        ValueError: if the rate is not positive.
    """
    if token_rate is not None and token_rate <= 0:
        raise ValueError(f"--token_rate is {token_rate}: wanted tokens a second, more than 0")
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
    spoken_rate = model.mel.config.frame_rate / model.dit.config.frames_per_token
    wait = model.layout.wait_ms(config.first_chunk or config.chunk, config.lookahead, model.mel.config.frame_rate)
    wait *= spoken_rate / (token_rate or spoken_rate)
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


def latency_line(latency: Latency) -> str:
    """The latency account in a sentence."""
    return (
        f"first packet {latency.first_packet_ms:.0f} ms = {latency.wait_ms:.0f} waiting for tokens "
        f"+ {latency.network_ms:.0f} network + {latency.vocoder_ms:.0f} vocoder; "
        f"real-time factor {latency.real_time_factor:.2f}; {latency.num_evaluations} network evaluations a chunk"
    )
