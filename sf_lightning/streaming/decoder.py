"""The streaming decoder: opens streams, advances them together, and decodes complete utterances.

Independent of training.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sf_lightning.model.streamflow import StreamFlow
from sf_lightning.streaming.engine import Engine
from sf_lightning.streaming.state import Chunk, DecodeConfig, DecodeCost
from sf_lightning.streaming.stream import Stream
from sf_lightning.vocoder.base import Vocoder


@dataclass
class StreamingDecoder:
    """Decodes streams of tokens with a model and a vocoder; any number of streams advance in one batched call.

    Args:
        model: Decoder; it is used as it is, so call `eval()`, cast and move it first.
        vocoder: Vocoder, on the same device.
        config: How to decode streams that are opened without a config.
        timed: Whether times are added to the costs, for which a GPU is synchronized.

    Attributes:
        engine: Engine that advances the states of the streams.

    Raises:
        ValueError: if the vocoder was made for another mel.

    >>> from sf_lightning import load_decoder
    >>> decoder = load_decoder("tests/model/exports/format-1")
    >>> streams = [decoder.open(), decoder.open(config=DecodeConfig(steps=2, seed=1))]
    >>> for stream in streams:
    ...     stream.feed(torch.arange(6))
    ...     stream.end()
    >>> [len(chunk.wave) for chunk in decoder.step(streams)]  # a chunk of each stream: 12 frames of 160 samples
    [1920, 1920]
    """

    model: StreamFlow
    vocoder: Vocoder
    config: DecodeConfig = DecodeConfig()
    timed: bool = True
    engine: Engine = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.vocoder.mel != self.model.mel.config:
            raise ValueError(
                f"the vocoder was made for the mel {self.vocoder.mel}, the decoder outputs "
                f"{self.model.mel.config}: use a vocoder of the same mel"
            )
        self.config = self.config.resolve(self.model.layout)
        self.engine = Engine(self.model, self.vocoder, self.timed)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.engine.device

    @property
    def tokens_per_block(self) -> int:
        """K, tokens of a block."""
        return self.engine.tokens_per_block

    @property
    def cost(self) -> DecodeCost:
        """Cost of all streams."""
        return self.engine.cost

    def open(self, speaker: Tensor | None = None, config: DecodeConfig | None = None) -> Stream:
        """Opens a stream.

        Args:
            speaker: Speaker embedding [S] from `StreamFlow.encode_speaker`, or None for no speaker (null
                embedding).
            config: How to decode this stream; by default the decoder's config.

        Raises:
            ValueError: if the embedding has another width or is not finite.
        """
        resolved = config.resolve(self.model.layout) if config else self.config
        return Stream(self.engine, self.engine.open(speaker, resolved))

    def step(self, streams: Sequence[Stream]) -> list[Chunk]:
        """Advances each stream by one chunk if enough of its tokens have arrived, in as few batches as possible.

        A stream that fails, or whose chunk is not finite, is stopped: its next `push` raises, the others continue.

        Raises:
            RuntimeError: if a stream is in use by another thread, or given twice.
            ValueError: if a stream belongs to another decoder.
        """
        if any(stream.engine is not self.engine for stream in streams):
            raise ValueError("a stream of another decoder was given: step it with the decoder that opened it")
        with ExitStack() as locks:
            for stream in streams:
                locks.enter_context(stream.lock())
            for stream in streams:
                stream.accept_tokens()
            return self.engine.advance([stream.state for stream in streams])

    def decode_offline(self, tokens: Sequence[Tensor], speakers: Sequence[Tensor | None]) -> list[Chunk]:
        """Decodes complete utterances offline, all blocks integrated together: the reference for streaming.

        Args:
            tokens: Tokens of each utterance, int64 [L].
            speakers: Speaker embedding [S], or None, of each utterance.

        Raises:
            ValueError: if tokens or an embedding are invalid, or an utterance has no tokens.
            FloatingPointError: if a mel or a wave is not finite.
        """
        if any(len(utterance) == 0 for utterance in tokens):
            raise ValueError("an utterance has no tokens: expected at least one")
        return self.decode(tokens, speakers, replace(self.config, mode="offline"))

    def decode(
        self, tokens: Sequence[Tensor], speakers: Sequence[Tensor | None], config: DecodeConfig | None = None
    ) -> list[Chunk]:
        """Decodes complete utterances as streams, side by side, chunk by chunk, and joins the chunks of each.

        Args:
            tokens: Tokens of each utterance, int64 [L].
            speakers: Speaker embedding [S], or None, of each utterance.
            config: How to decode; by default the decoder's config.

        Raises:
            ValueError: if tokens or an embedding are invalid.
            FloatingPointError: if a mel or a wave is not finite.
        """
        streams = [self.open(speaker, config) for speaker in speakers]
        for stream, utterance in zip(streams, tokens, strict=True):
            stream.feed(utterance)
            stream.end()
        emitted: list[list[Chunk]] = [[] for _ in streams]
        while not all(stream.finished for stream in streams):
            for chunks, chunk in zip(emitted, self.step(streams), strict=True):
                chunks.append(chunk)
        for stream in streams:
            stream.raise_error()
        return [
            Chunk(torch.cat([c.mel for c in chunks]), torch.cat([c.wave for c in chunks])) for chunks in emitted
        ]
