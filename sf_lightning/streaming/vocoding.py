"""Mel to audio within streams: audio that was emitted stays, new audio joins it without an edge.

Independent of how the mel was made.

Letters: P frames of the past, C new frames, R of right context, F mel bands, N samples.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sf_lightning.streaming.state import VocoderState
from sf_lightning.vocoder.base import Vocoder


class MelPiece(NamedTuple):
    """Mel of one stream for one call of the vocoder.

    Attributes:
        final: Frames that have become final, [T, F].
        after: Provisional frames after them, [T, F].
        is_last: Whether no frame will follow `final`.
        reaches_end: Whether the last token of the stream has arrived, so that `after` is not continued.
    """

    final: Tensor
    after: Tensor
    is_last: bool
    reaches_end: bool


def extend_waves(vocoder: Vocoder, states: Sequence[VocoderState], pieces: Sequence[MelPiece]) -> list[Tensor]:
    """Extends the wave of each stream; streams whose inputs have equal lengths share a batch.

    Args:
        vocoder: Vocoder of all streams.
        states: State of each stream, which is advanced.
        pieces: New mel of each stream.

    Returns:
        New audio of each stream, [N].
    """
    inputs = [_vocoder_input(vocoder, *pair) for pair in zip(states, pieces, strict=True)]
    waves = [state.wave[:0] for state in states]
    for members in group_by_key(
        range(len(states)), lambda i: (len(inputs[i][0]), inputs[i][1], len(states[i].wave))
    ):
        if num_new := inputs[members[0]][1]:
            mel = torch.stack([inputs[i][0] for i in members])
            past = torch.stack([states[i].wave for i in members])
            for i, wave in zip(members, vocoder.extend(mel, past, num_new), strict=True):
                waves[i] = wave
    left, hop = vocoder.left, vocoder.hop
    for state, piece, wave in zip(states, pieces, waves, strict=True):
        num_pending = state.num_pending(hop) + len(piece.final) - len(wave) // hop
        state.mel = _last_rows(torch.cat([state.mel, piece.final]), left + num_pending)
        state.wave = _last_rows(torch.cat([state.wave, wave]), left * hop)
    return waves


def stream_mel(vocoder: Vocoder, mel: Tensor, chunk: int, ahead: int, exact: bool = False) -> Iterator[Tensor]:
    """Yields the audio of a complete mel as a stream would emit it, chunk by chunk.

    Args:
        vocoder: Vocoder.
        mel: Log-mel, [T, F].
        chunk: Frames of a chunk.
        ahead: Frames after a chunk that the vocoder is given, as from a look-ahead.
        exact: Whether audio is delayed until the whole right context is available.

    Yields:
        Audio of each chunk, [N].
    """
    state = VocoderState(mel[:0], mel.new_zeros(0), exact)
    for end in range(chunk, len(mel) + chunk, chunk):
        piece = MelPiece(mel[end - chunk : end], mel[end : end + ahead], end >= len(mel), end + ahead >= len(mel))
        yield extend_waves(vocoder, [state], [piece])[0]


def _vocoder_input(vocoder: Vocoder, state: VocoderState, piece: MelPiece) -> tuple[Tensor, int]:
    """Returns the mel to vocode, [P + C + R, F], and C."""
    right, past = vocoder.right, len(state.wave) // vocoder.hop
    frames = torch.cat([state.mel, piece.final])
    num_new = len(frames) - past
    if piece.is_last:
        return frames, num_new
    if state.exact:
        num_new = max(0, num_new - right)
        return frames[: past + num_new + right], num_new
    after = piece.after[:right]
    context = torch.cat([frames, after])
    # Missing frames repeat the last one: zeros would be loud, and no frame at all means the end of the speech.
    missing = 0 if piece.reaches_end and len(after) else right - len(after)
    return torch.cat([context, context[-1:].expand(missing, -1)]), num_new


def group_by_key(numbers: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Groups numbers by a key, in order of appearance."""
    groups: dict[Hashable, list[int]] = {}
    for number in numbers:
        groups.setdefault(key(number), []).append(number)
    return list(groups.values())


def _last_rows(x: Tensor, count: int) -> Tensor:
    """Returns a copy of the last `count` rows, or of all if there are fewer."""
    return x[max(0, len(x) - count) :].clone()
