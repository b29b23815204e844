"""A stream as its user sees it: tokens pushed in, audio returned, one thread at a time."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from sf_lightning.streaming.engine import Engine
from sf_lightning.streaming.state import StreamState


@dataclass(eq=False)
class Stream:
    """One utterance that is being decoded, opened by `StreamingDecoder.open`.

    `feed` and `end` may be called in one thread while another one decodes; `push`, `flush` and
    `StreamingDecoder.step` must not run in two threads at a time.

    Args:
        engine: Engine of the decoder that opened the stream.
        state: State of the stream.
    """

    engine: Engine
    state: StreamState
    _inbox: deque[Tensor] = field(default_factory=deque, repr=False)
    _ending: bool = False
    _busy: Lock = field(default_factory=Lock, repr=False)

    def feed(self, tokens: Tensor) -> None:
        """Queues tokens [L] without decoding them; `StreamingDecoder.step` decodes.

        Raises:
            ValueError: if a token is outside the vocabulary, or the stream was flushed.
            FloatingPointError: if the stream was stopped because its mel or wave was not finite.
        """
        if self._ending:
            raise ValueError("tokens were pushed to a stream that was flushed: open a new one")
        self.raise_error()
        self.engine.check_tokens(tokens)
        self._inbox.append(tokens.cpu().long())

    def end(self) -> None:
        """Declares that no more tokens will follow."""
        self._ending = True

    def accept_tokens(self) -> None:
        """Moves queued tokens into the state; the caller must hold the stream (`lock`)."""
        # The end is read first: then every token that was queued before it is accepted below.
        ending, queued = self._ending, [self.state.tokens]
        while self._inbox:
            queued.append(self._inbox.popleft())
        if len(queued) > 1:
            self.state.tokens = torch.cat(queued)
        self.state.ended = ending

    @property
    def finished(self) -> bool:
        """Whether the stream has ended and emitted all its audio, or was stopped by an error."""
        state = self.state
        return state.error is not None or (
            self._ending and state.ended and not self._inbox and self.engine.is_finished(state)
        )

    def push(self, tokens: Tensor) -> Tensor:
        """Accepts tokens [L], any number of them, and returns the audio [N] that has become final.

        Raises:
            ValueError, FloatingPointError: as `feed`.
            RuntimeError: if another thread is using the stream.
        """
        with self.lock():
            self.feed(tokens)
            return self._drain()

    def flush(self) -> Tensor:
        """Ends the stream and returns the rest of its audio [N].

        Raises:
            FloatingPointError: as `feed`.
            RuntimeError: if another thread is using the stream.
        """
        with self.lock():
            self.end()
            return self._drain()

    @torch.inference_mode()
    def _drain(self) -> Tensor:
        self.raise_error()
        waves, before = [self.state.vocoder.wave[:0]], (-1, -1)
        while before != (before := (self.state.emitted, len(waves[-1]))) and self.state.error is None:
            self.accept_tokens()
            waves.append(self.engine.advance([self.state])[0].wave)
        if not any(map(len, waves)):
            self.raise_error()  # otherwise audio that is good is returned first, and the next call raises
        return torch.cat(waves)

    def raise_error(self) -> None:
        """Raises the exception that has stopped this stream, such as FloatingPointError after a mel with NaN."""
        if self.state.error is not None:
            raise self.state.error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the stream for the caller.

        Raises:
            RuntimeError: if the stream is in use.
        """
        if not self._busy.acquire(blocking=False):
            raise RuntimeError(
                "this stream is in use by another thread, or was given twice: use each stream in one thread at a "
                "time"
            )
        try:
            yield
        finally:
            self._busy.release()
