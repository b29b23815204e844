"""Validation of a vocoder: held-out clips made of their own mels, whole and streamed, scored beside Griffin-Lim."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import lightning as L
import torch
from torch import Tensor

from sf_lightning.evaluation.clips import kept
from sf_lightning.metrics.speech import SpeechScores, gap
from sf_lightning.streaming.vocoding import stream_mel
from sf_lightning.training.callbacks.keeping import keep_clip, samples_folder
from sf_lightning.training.callbacks.listening import Listening
from sf_lightning.training.callbacks.preemption import stop_if_requested
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.vocoder_module import VocoderModule
from sf_lightning.vocoder.base import Vocoder
from sf_lightning.vocoder.griffin_lim import GriffinLim

STREAMED = ("streamed", "griffin_lim_streamed")
"""Ways whose sound is made chunk by chunk, and so may have seams."""


GRIFFIN_LIM = ("griffin_lim", "griffin_lim_streamed")
"""Ways that are heard once."""


class _Clip(NamedTuple):
    """A held-out clip on the device: wave [N], mel [T, F], and the decoder's mel of it where one makes those."""

    key: str
    wave: Tensor
    mel: Tensor
    generated: Tensor | None


class CopySynthesis(Listening):
    """Makes the clips of validation of their own mels with the averaged generator, whole and as a stream would.

    Logs `{copy_synthesis,streamed}/{pesq_wb,stoi,visqol,mel_l1,mr_stft,periodicity,real_time_factor,no_score}`;
    `streamed/gap` to the whole, and `streamed/exact_gap` where the vocoder waits for all of its right context, the
    largest difference of a sample, which is rounding; and once the same scores of Griffin-Lim, whole and streamed
    at the same latency. Where training hears the mels of a decoder, `generated/*` are the scores of what is made of
    those. What training is about, these or else `copy_synthesis`, is `val/pesq_wb` and, its mel error, `val/loss`.
    Writes waves and pictures with their differences under `samples/step-*/` of the run's folder, and to W&B; ends a
    fit with a table and a page, `report.html`.

    Args:
        keep: Clips whose sound and picture are kept.
        iterations: Steps of Griffin-Lim.
        chunk_frames: Of the chunks of streams.
        lookahead_frames: After a chunk, of which its vocoder knows.
    """

    def __init__(
        self, keep: int = 2, iterations: int = 60, chunk_frames: int = 24, lookahead_frames: int = 24
    ) -> None:
        super().__init__()
        if chunk_frames < 1 or lookahead_frames < 0:
            raise ValueError(
                f"CopySynthesis: chunk_frames {chunk_frames}, lookahead_frames {lookahead_frames}: wanted 1 or "
                "more, and 0 or more"
            )
        self.keep, self.iterations = keep, iterations
        self.chunk, self.ahead = chunk_frames, lookahead_frames
        self.heard: list[str | int] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes ready."""
        assert isinstance(pl_module, VocoderModule)
        self.ready(pl_module.mel.config.sample_rate, copies=True)

    def listen(
        self, trainer: L.Trainer, pl_module: L.LightningModule, datamodule: ShardDataModule
    ) -> dict[str, float]:
        """Makes, scores and keeps."""
        assert isinstance(pl_module, VocoderModule)
        clips = self._clips(pl_module, datamodule, trainer)
        # Rows of other clips, or made otherwise, would stand beside those of these: a run may go on with others.
        keys = (drawn.clip.key for drawn in datamodule.clips)
        heard: list[str | int] = [*keys, self.iterations, self.chunk, self.ahead]
        same = GRIFFIN_LIM if heard == self.heard else ()
        self.rows, self.heard = {way: self.rows[way] for way in same if way in self.rows}, heard
        made: dict[str, list[Tensor]] = {}
        factors: dict[str, float] = {}
        for way, make in self._ways(pl_module, datamodule.generated_mels is not None):
            began = time.perf_counter()
            # On the CPU, so that the clock has waited for the device.
            made[way] = [make(clip).cpu() for clip in clips]
            seconds = time.perf_counter() - began
            spoken = sum(len(clip.wave) for clip in clips) / pl_module.mel.config.sample_rate
            factors[way] = seconds / spoken
            stop_if_requested(trainer)
        mels = {way: [self._mel(pl_module, wave) for wave in waves] for way, waves in made.items()}
        for way in made:
            scores = self._score(pl_module, way, made[way], mels[way], clips)
            self.rows[way] = scores | {"real_time_factor": factors[way]}
        self.rows["streamed"]["gap"] = gap(mels["streamed"], mels["copy_synthesis"])
        values = {f"{way}/{name}": value for way in made for name, value in self.rows[way].items()}
        values["streamed/exact_gap"] = self._exact_gap(pl_module, clips, made["copy_synthesis"])
        judged = self.rows["generated" if "generated" in made else "copy_synthesis"]
        values |= {"val/loss": judged["mel_l1"], "val/pesq_wb": judged["pesq_wb"]}
        if trainer.is_global_zero:
            self._keep(trainer, pl_module, clips, made, mels)
        return values

    def state_dict(self) -> dict[str, Any]:
        """What the last validation found, and of which clips."""
        return super().state_dict() | {"heard": self.heard}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        super().load_state_dict(state_dict)
        self.heard = state_dict["heard"]

    # -- making ---------------------------------------------------------------------------------------

    def _clips(self, module: VocoderModule, datamodule: ShardDataModule, trainer: L.Trainer) -> list[_Clip]:
        clips = []
        for i, drawn in enumerate(datamodule.rank_clips):
            number = trainer.global_rank + i * trainer.world_size  # the same on any number of ranks
            wave, generated = torch.from_numpy(drawn.clip.wave).to(module.device), None
            if datamodule.generated_mels is not None:
                generated = datamodule.generated_mels.teacher.predict_clip_mel(drawn, number, module.device)
            clips.append(_Clip(drawn.clip.key, wave, self._mel(module, wave), generated))
        return clips

    def _ways(self, module: VocoderModule, generated: bool) -> Iterator[tuple[str, Callable[[_Clip], Tensor]]]:
        """What makes a wave [N] of a clip, by name; Griffin-Lim unless it has been heard."""
        yield "copy_synthesis", lambda clip: module.synthesize(clip.mel[None])[0]
        yield "streamed", lambda clip: self._stream(module.average.eval(), clip.mel)
        if generated:
            yield "generated", lambda clip: module.synthesize(cast(Tensor, clip.generated)[None])[0]
        if self.rows:
            return
        griffin_lim = GriffinLim(module.mel.config, self.iterations).to(module.device)
        yield "griffin_lim", lambda clip: griffin_lim.decode(clip.mel[None])[0]
        yield "griffin_lim_streamed", lambda clip: self._stream(griffin_lim, clip.mel)

    def _stream(self, vocoder: Vocoder, mel: Tensor, exact: bool = False) -> Tensor:
        return torch.cat([*stream_mel(vocoder, mel, self.chunk, self.ahead, exact)])

    def _exact_gap(self, module: VocoderModule, clips: list[_Clip], whole: list[Tensor]) -> float:
        """The largest difference of a sample of the whole from a stream that waits, in the clips that are kept."""
        some = kept(len(clips), self.keep)
        waves = ((self._stream(module.average, clips[i].mel, exact=True).cpu(), whole[i]) for i in some)
        return max((float((a - b).abs().max()) for a, b in waves), default=float("nan"))

    def _mel(self, module: VocoderModule, wave: Tensor) -> Tensor:
        return module.mel(wave.to(module.device)[None])[0]

    # -- scoring and keeping --------------------------------------------------------------------------

    def _score(
        self, module: VocoderModule, way: str, waves: list[Tensor], mels: list[Tensor], clips: list[_Clip]
    ) -> dict[str, float]:
        config = module.mel.config
        scores = SpeechScores(config.sample_rate, module.device, copies=True)
        edges = [self._edges(way, clip) * config.hop_length for clip in clips]
        wanted = [clip.wave.cpu() for clip in clips]
        scores.update(waves, wanted, mels, [clip.mel for clip in clips], edges)
        found = scores.compute()
        if way not in STREAMED:
            del found["seam_db"]  # nothing is joined
        return found

    def _edges(self, way: str, clip: _Clip) -> Tensor:
        """Frames at which chunks meet."""
        return torch.arange(self.chunk, max(self.chunk, len(clip.mel) if way in STREAMED else 0), self.chunk)

    def _keep(
        self,
        trainer: L.Trainer,
        module: VocoderModule,
        clips: list[_Clip],
        made: dict[str, list[Tensor]],
        mels: dict[str, list[Tensor]],
    ) -> None:
        self.samples, config = samples_folder(trainer), module.mel.config
        names = {"made": "copy_synthesis", "streamed": "streamed"}
        for i in kept(len(clips), self.keep):
            sounds = {"reference": clips[i].wave} | {name: made[way][i] for name, way in names.items()}
            seen = {"reference": clips[i].mel} | {name: mels[way][i] for name, way in names.items()}
            rates, edges = dict.fromkeys(sounds, config.sample_rate), self._edges("streamed", clips[i])
            keep_clip(trainer, self.samples, clips[i].key, sounds, rates, seen, edges, config.frame_rate, True)
