"""Decodes clips offline, streamed, or through the vocoder alone, and scores them against their recordings.

Training runs and `sf-eval` both use it. Independent of Lightning, of tables and of the source of clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sf_lightning.audio.wave import resampled
from sf_lightning.data.lanes import DrawnClip
from sf_lightning.evaluation.scores import ClipScorer, PendingScores
from sf_lightning.metrics.speech import mel_gap
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.state import Chunk, DecodeConfig


class HeldOutClip(NamedTuple):
    """A clip ready to be decoded: wave [N] and log-mel [T, F], speaker embedding [S] on the decoder's device."""

    drawn: DrawnClip
    wave: Tensor
    mel: Tensor
    speaker: Tensor

    @property
    def key(self) -> str:
        """Key of the clip."""
        return self.drawn.clip.key

    @property
    def tokens(self) -> Tensor:
        """Tokens of the clip, [L], on the CPU."""
        return torch.from_numpy(self.drawn.clip.tokens)


@dataclass
class ClipEvaluator:
    """Decodes batches of clips and scores the result.

    Args:
        decoder: Decoder with model, vocoder and decoding settings.
        scorer: Scorer of single clips.
        edges_config: Settings that define where chunks meet; `decoder.config` by default. Clips that are not
            streamed are measured at the same places.
    """

    decoder: StreamingDecoder
    scorer: ClipScorer
    edges_config: DecodeConfig | None = None

    def prepare(self, drawn: Sequence[DrawnClip]) -> list[HeldOutClip]:
        """Computes mels and speaker embeddings of a batch of clips; wave and mel are on the CPU."""
        if not drawn:
            return []
        model, device = self.decoder.model, self.decoder.device
        references = torch.stack([torch.from_numpy(clip.reference) for clip in drawn]).to(device)
        x_vectors = torch.stack([torch.from_numpy(clip.clip.x_vector) for clip in drawn]).to(device)
        waves = [torch.from_numpy(clip.clip.wave) for clip in drawn]
        mels = _to_cpu([model.mel(wave[None].to(device))[0] for wave in waves])
        return [*map(HeldOutClip, drawn, waves, mels, model.encode_speaker(references, x_vectors))]

    def offline(self, clips: Sequence[HeldOutClip]) -> list[Chunk]:
        """Decodes whole clips side by side; the result is on the CPU."""
        return _chunks_to_cpu(self.decoder.decode_offline([c.tokens for c in clips], [c.speaker for c in clips]))

    def stream(self, clips: Sequence[HeldOutClip], config: DecodeConfig | None = None) -> list[Chunk]:
        """Decodes clips side by side, chunk by chunk, with the decoder's settings by default; on the CPU."""
        if not clips:
            return []
        tokens, speakers = [clip.tokens for clip in clips], [clip.speaker for clip in clips]
        return _chunks_to_cpu(self.decoder.decode(tokens, speakers, config))

    def vocode(self, mels: Sequence[Tensor]) -> list[Chunk]:
        """Returns log-mels [T, F] with the waves that the vocoder makes of them, on the CPU."""
        on_device = [mel.to(self.decoder.device) for mel in mels]
        return _chunks_to_cpu([Chunk(mel, self.decoder.vocoder.decode(mel[None])[0]) for mel in on_device])

    def edges(self, clip: HeldOutClip) -> Tensor:
        """Returns the frames at which chunks of the streamed clip begin, except the first, [E]."""
        size = self.decoder.model.layout.block_size
        config = self.edges_config or self.decoder.config
        return torch.tensor(config.edges(-(-len(clip.mel) // size)), dtype=torch.long) * size

    def score(self, clip: HeldOutClip, decoded: Chunk, offline: Chunk | None = None) -> PendingScores:
        """Starts scoring a decoded clip.

        Args:
            clip: The clip.
            decoded: Its decoded mel and wave.
            offline: The same clip decoded offline, given only for a streamed one; adds the score `gap`.
        """
        vocoder = self.decoder.vocoder
        # An exact vocoder delays audio by its right context, so chunks of audio meet earlier by that.
        delay = vocoder.right if self.decoder.config.exact_vocoder else 0
        edges = self.edges(clip)
        edges = (edges - delay)[edges > delay] * vocoder.mel.hop_length
        # Metrics are defined at the recording's rate, which is that of the mel.
        wave = resampled(decoded.wave, vocoder.sample_rate, vocoder.mel.sample_rate)
        pending = self.scorer.start(clip.key, wave, clip.wave, decoded.mel, clip.mel, edges)
        if offline is not None:
            pending.values["gap"] = mel_gap([decoded.mel], [offline.mel])
        return pending

    def gaps_by_lookahead(self, clips: Sequence[HeldOutClip], offline: Sequence[Chunk]) -> dict[int, float]:
        """Returns the gap to offline by look-ahead in blocks: q, 2 q, 4 q and so on up to q times the evaluations.

        Each gap is over the clips of all ranks (a collective operation). Empty without clips and where the
        look-ahead changes nothing: in another mode than "cached", or with a layout that does not look ahead.
        """
        layout, config = self.decoder.model.layout, self.decoder.config
        if config.mode != "cached" or layout.lookahead == 0 or not clips:
            return {}
        evaluations = config.num_evaluations
        factors = [2**i for i in range(evaluations.bit_length()) if 2**i < evaluations]
        gaps = {}
        for blocks in (layout.lookahead * factor for factor in [*factors, evaluations]):
            streamed = self.stream(clips, replace(config, lookahead=blocks))
            mels = [chunk.mel for chunk in streamed], [chunk.mel for chunk in offline]
            gaps[blocks] = mel_gap(*mels, sync_device=self.decoder.device)
        return gaps


def _chunks_to_cpu(chunks: Sequence[Chunk]) -> list[Chunk]:
    mels, waves = (_to_cpu([getattr(chunk, name) for chunk in chunks]) for name in ("mel", "wave"))
    return [*map(Chunk, mels, waves)]


def _to_cpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies tensors that differ in their first size alone in one transfer: on a GPU each transfer blocks."""
    return [*torch.cat([*tensors]).cpu().split([len(tensor) for tensor in tensors])] if tensors else []
