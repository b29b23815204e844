"""Mel to sound within streams: what was heard stays, what comes joins.

Knows nothing of how the mel was made.

Letters: P frames of the past, C to be heard now, R of right context, F mel bands, N samples.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sf_lightning.streaming.state import DecodeConfig, StreamState
from sf_lightning.vocoder.base import Vocoder


def extend(
    vocoder: Vocoder,
    states: Sequence[StreamState],
    mels: Sequence[tuple[Tensor, Tensor]],
    finished: Sequence[bool],
) -> list[Tensor]:
    """Extends each stream's wave; streams whose pieces have the same lengths go through together.

    Args:
        vocoder: What makes the sound.
        states: Whose mel and wave are taken further.
        mels: Of each stream, the frames that are final now and a guess at those after them, [T, F].
        finished: Whether these are the last frames.

    Returns:
        What is to be heard now of each, [N].
    """
    pieces = [_piece(vocoder, *each) for each in zip(states, mels, finished, strict=True)]
    waves = [state.wave[:0] for state in states]
    for same in alike(range(len(states)), lambda i: (len(pieces[i][0]), pieces[i][1], len(states[i].wave))):
        if num_new := pieces[same[0]][1]:
            mel = torch.stack([pieces[i][0] for i in same])
            past = torch.stack([states[i].wave for i in same])
            for i, wave in zip(same, vocoder.extend(mel, past, num_new), strict=True):
                waves[i] = wave
    left, hop = vocoder.left, vocoder.hop
    for state, (final, _), wave in zip(states, mels, waves, strict=True):
        heard = torch.cat([state.wave, wave])
        waiting = num_waiting(vocoder, state) + len(final) - len(wave) // hop
        state.mel = _last(torch.cat([state.mel, final]), left + waiting)
        state.wave = _last(heard, left * hop)
    return waves


def stream_mel(vocoder: Vocoder, mel: Tensor, chunk: int, ahead: int, exact: bool = False) -> Iterator[Tensor]:
    """Yields the sound of a mel that is known already as a stream would make it, chunk by chunk.

    Args:
        vocoder: What makes the sound.
        mel: [T, F].
        chunk: Frames of a chunk.
        ahead: Frames after it of which the vocoder knows, as of a look-ahead.
        exact: Whether it waits for all of its right context instead.

    Yields:
        What is to be heard after each chunk, [N].
    """
    config, no_tokens = DecodeConfig(exact_vocoder=exact), torch.empty(0, dtype=torch.long)
    state = StreamState(None, config, 1, no_tokens, mel[:0], mel.new_zeros(0))
    for end in range(chunk, len(mel) + chunk, chunk):
        state.ended = end + ahead >= len(mel)
        piece = (mel[end - chunk : end], mel[end : end + ahead])
        yield extend(vocoder, [state], [piece], [end >= len(mel)])[0]


def _piece(vocoder: Vocoder, state: StreamState, mel: tuple[Tensor, Tensor], finished: bool) -> tuple[Tensor, int]:
    """Returns the mel to vocode, [P + C + R, F], and C."""
    final, after = mel
    right, past = vocoder.right, len(state.wave) // vocoder.hop
    frames = torch.cat([state.mel, final])
    num_new = len(frames) - past
    if finished:
        return frames, num_new
    if state.config.exact_vocoder:
        num_new = max(0, num_new - right)
        return frames[: past + num_new + right], num_new
    context = torch.cat([frames, after[:right]])
    # What is not there yet is taken to go on as it is: zeros would be loud, and mean the end.
    missing = 0 if state.ended and len(after) else right - len(after[:right])
    return torch.cat([context, context[-1:].expand(missing, -1)]), num_new


def num_waiting(vocoder: Vocoder, state: StreamState) -> int:
    """Frames whose mel is final and whose sound still waits."""
    return len(state.mel) - len(state.wave) // vocoder.hop


def alike(numbers: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Groups numbers by a key, in order of appearance."""
    groups: dict[Hashable, list[int]] = {}
    for number in numbers:
        groups.setdefault(key(number), []).append(number)
    return list(groups.values())


def _last(x: Tensor, count: int) -> Tensor:
    """The last `count` rows, or fewer if there are fewer; in memory of their own."""
    return x[max(0, len(x) - count) :].clone()
