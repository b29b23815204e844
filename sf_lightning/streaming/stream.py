"""A stream as its user sees it: tokens pushed in, sound handed out, one thread at a time.

Knows nothing of how it is decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sf_lightning.streaming.state import StreamState

if TYPE_CHECKING:
    from sf_lightning.streaming.decoder import StreamingDecoder


@dataclass(eq=False)
class Stream:
    """One utterance on its way: push tokens, hear what is ready, flush at the end.

    `feed` and `end` may be called in one thread while another one decodes; `push`, `flush` and
    `StreamingDecoder.step` are for one thread at a time.
    """

    decoder: StreamingDecoder
    state: StreamState
    _inbox: deque[Tensor] = field(default_factory=deque, repr=False)
    _ending: bool = False
    _busy: Lock = field(default_factory=Lock, repr=False)

    def feed(self, tokens: Tensor) -> None:
        """Takes tokens [L] without decoding; `StreamingDecoder.step` decodes.

        Raises:
            ValueError: if a token is outside the vocabulary, or the stream was flushed.
            FloatingPointError: if the stream was stopped because its mel or wave was not finite.
        """
        if self._ending:
            raise ValueError("tokens were pushed to a stream that was flushed: open a new one")
        self.require_sound()
        self.decoder.check(tokens)
        self._inbox.append(tokens.cpu().long())

    def end(self) -> None:
        """Says that no more tokens will come."""
        self._ending = True

    def take(self) -> None:
        """Moves what was fed into the state; for the decoder, which then has the stream for itself."""
        # The end is looked at first: then all that was fed before it is there.
        ending, fed = self._ending, [self.state.tokens]
        while self._inbox:
            fed.append(self._inbox.popleft())
        if len(fed) > 1:
            self.state.tokens = torch.cat(fed)
        self.state.ended = ending

    @property
    def finished(self) -> bool:
        """Whether everything has been heard that will be."""
        state = self.state
        return state.error is not None or (
            self._ending and state.ended and not self._inbox and self.decoder.is_finished(state)
        )

    def push(self, tokens: Tensor) -> Tensor:
        """Takes tokens [L], any number of them, and returns the wave [N] that has become ready.

        Raises:
            ValueError, FloatingPointError: as `feed`.
            RuntimeError: if another thread is using the stream.
        """
        with self.alone():
            self.feed(tokens)
            return self._drain()

    def flush(self) -> Tensor:
        """Ends the stream and returns the rest of its wave [N].

        Raises:
            FloatingPointError: as `feed`.
            RuntimeError: if another thread is using the stream.
        """
        with self.alone():
            self.end()
            return self._drain()

    @torch.inference_mode()
    def _drain(self) -> Tensor:
        self.require_sound()
        waves, before = [self.state.wave[:0]], (-1, -1)
        while before != (before := (self.state.emitted, len(waves[-1]))) and self.state.error is None:
            waves.append(self.decoder.advance([self])[0].wave)
        if not any(map(len, waves)):
            self.require_sound()  # else what is good is heard first, and the next call says what went wrong
        return torch.cat(waves)

    def require_sound(self) -> None:
        """Raises what has stopped this stream, such as a FloatingPointError where its mel was not finite."""
        if self.state.error is not None:
            raise self.state.error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps others away.

        Raises:
            RuntimeError: if the stream is in use.
        """
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(
                "this stream is in use by another thread, or was given twice: give each thread streams of its own"
            )
        try:
            yield
        finally:
            self._busy.release()
