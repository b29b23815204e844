"""Mels that a trained decoder predicts for recorded speech, teacher-forced: the training input of a vocoder.

A mel that is decoded from noise has its own pitch contour, so the recorded wave is not a target for it. With
teacher forcing the network gets a point x_t of the path that ends in the recorded mel, at a time t drawn for each
piece, with the piece's own tokens and speaker and the usual guidance; one evaluation predicts the end of the path,
x_1 = x_t + (1 - t) v. Late times give mels near the recorded one, early times mels that follow from the tokens
alone. All of them have the decoder's errors, blurred harmonics first, and the timing of the recording.

Letters: U utterances, M blocks, W frames of a block, T frames, F mel bands.
"""

import torch
from torch import Tensor

from sf_lightning.data.lanes import DrawnClip
from sf_lightning.data.packing import Batch, PackShape, pack_clips
from sf_lightning.flow.guidance import guided
from sf_lightning.flow.noise import keyed_generator
from sf_lightning.flow.path import straight_path
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.streamflow import StreamFlow


class Teacher:
    """Predicts the mels of packs with a trained decoder.

    Args:
        model: The decoder; its weights are frozen.
        guidance: Strength of the guidance.
        seed: Seed of noise and times, beside lane and number of the pack.
    """

    def __init__(self, model: StreamFlow, guidance: float, seed: int) -> None:
        self.model, self.guidance, self.seed = model.eval().requires_grad_(False), guidance, seed

    @torch.no_grad()
    def predict_mels(self, batch: Batch) -> Tensor:
        """Returns the log-mels [M, W, F] of a batch, on its device; values under padding are undefined."""
        model, blocks, device = self.model.to(batch.wave.device), batch.blocks, batch.wave.device
        x_0, t = self._draw(batch)
        x_1 = model.to_flow(model.mel.frames(batch.wave))
        at = t[blocks.utterance, None, None]
        x_t = straight_path(x_0, x_1, at).x_t
        kept = torch.zeros(blocks.num_utterances, dtype=torch.bool, device=device)
        speaker = model.encode_speaker(batch.reference, batch.x_vector)
        condition = model.condition(batch.tokens, speaker, blocks, kept, kept)
        null = model.null_condition(blocks) if self.guidance else condition
        times = torch.cat([t, t])  # for both branches of the guidance

        def network(x: Tensor, _: int, condition: Tensor, blocks: Blocks) -> Tensor:
            return model.velocity(x, times[: blocks.num_utterances], condition, blocks)

        velocity = guided(network, condition, null, blocks, self.guidance)(x_t, 0)
        return model.to_mel(x_t + (1 - at) * velocity).float()

    def _draw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Draws noise [M, W, F] and times [U], the same at any world size and after a resume."""
        frames, bands, device = batch.blocks.block_size, self.model.mel.config.num_bands, batch.wave.device
        noise, times = [], []
        for pack in batch.packs:
            random = keyed_generator("teacher", self.seed, pack.lane, pack.pack, device=device)
            noise.append(torch.randn(pack.num_blocks, frames, bands, generator=random, device=device))
            times.append(torch.rand(pack.num_utterances, generator=random, device=device))
        return torch.cat(noise), torch.cat(times)

    def predict_clip_mel(self, drawn: DrawnClip, number: int, device: torch.device) -> Tensor:
        """Returns the log-mel [T, F] of a whole clip on a device; `number` is the key of noise and time."""
        model = self.model
        block, config = model.layout.block_size, model.mel.config
        count = -(-len(drawn.clip.wave) // (block * config.hop_length))
        shape = PackShape(count, block, model.dit.config.frames_per_token, 1, config)
        # Lanes below 0 are not those of training, whose draws are others.
        batch = next(pack_clips([drawn], shape, lane=-1 - number)).to(device)
        return self.predict_mels(batch)[batch.blocks.valid]
