"""Validation of a vocoder: held-out clips vocoded from their own mels, whole and streamed, and Griffin-Lim's."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import lightning as L
import torch
from torch import Tensor

from sf_lightning.evaluation.selection import kept_clips
from sf_lightning.metrics.speech import mel_gap
from sf_lightning.streaming.vocoding import stream_mel
from sf_lightning.training.callbacks.preemption import stop_if_requested
from sf_lightning.training.callbacks.run_report import keep_clip, samples_folder
from sf_lightning.training.callbacks.scored_validation import ScoredValidation
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.vocoder_module import VocoderModule
from sf_lightning.vocoder.base import Vocoder
from sf_lightning.vocoder.griffin_lim import GriffinLim

STREAMED = ("streamed", "griffin_lim_streamed")
"""Modes that vocode chunk by chunk, and so may have seams."""

GRIFFIN_LIM = ("griffin_lim", "griffin_lim_streamed")
"""Modes that are evaluated once a run."""

EDGE_SCORES = ("seam_db", "pitch_jump", "level_jump")
"""Scores at chunk edges; undefined for modes without chunks."""


class _Clip(NamedTuple):
    """A held-out clip on the device: wave [N], log-mel [T, F], and the mel that a decoder generates, if any."""

    key: str
    wave: Tensor
    mel: Tensor
    generated: Tensor | None


class CopySynthesis(ScoredValidation):
    """Vocodes the validation clips from their own mels with the averaged generator, whole and streamed.

    Logs `{copy_synthesis,streamed}/{pesq_wb,stoi,visqol,mel_l1,mr_stft,periodicity,real_time_factor,no_score}` and
    for streams `{seam_db,pitch_jump,level_jump}`; `streamed/gap` to the whole; `streamed/exact_gap`, the largest
    difference of a sample where the vocoder waits for all of its right context, which is rounding; and once the
    same scores of Griffin-Lim, whole and streamed at the same latency. Where training uses the mels of a decoder,
    `generated/*` are the scores of clips vocoded from those. `val/pesq_wb` and, its mel error, `val/loss` are those
    of `generated`, or else of `copy_synthesis`. Writes waves and pictures with their differences to
    `samples/step-*/` of the run's folder and to W&B; a fit ends with a table and `report.html`.

    Args:
        keep: Number of clips whose sound and picture are kept.
        iterations: Iterations of Griffin-Lim.
        chunk_frames: Frames of a chunk of the streams.
        lookahead_frames: Frames after a chunk that its vocoder sees.
    """

    def __init__(
        self, keep: int = 2, iterations: int = 60, chunk_frames: int = 24, lookahead_frames: int = 24
    ) -> None:
        super().__init__(copies=True)
        if chunk_frames < 1 or lookahead_frames < 0:
            raise ValueError(
                f"CopySynthesis has chunk_frames {chunk_frames} and lookahead_frames {lookahead_frames}: expected "
                "at least 1 and at least 0"
            )
        self.keep, self.iterations = keep, iterations
        self.chunk_frames, self.lookahead_frames = chunk_frames, lookahead_frames
        self.settings: list[str | int] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Creates the scorer."""
        assert isinstance(pl_module, VocoderModule)
        self.prepare_scoring(pl_module.mel.config.sample_rate)

    def evaluate(
        self, trainer: L.Trainer, pl_module: L.LightningModule, datamodule: ShardDataModule
    ) -> dict[str, float]:
        """Vocodes and scores the clips of this rank, keeps some, and returns the values to log."""
        assert isinstance(pl_module, VocoderModule)
        clips = self._clips(pl_module, datamodule, trainer)
        # Rows of other clips or settings are not comparable with those of these: a resumed run may have changed
        # them.
        keys = (drawn.clip.key for drawn in datamodule.clips)
        settings: list[str | int] = [*keys, self.iterations, self.chunk_frames, self.lookahead_frames]
        reused = GRIFFIN_LIM if settings == self.settings else ()
        self.rows, self.settings = {mode: self.rows[mode] for mode in reused if mode in self.rows}, settings
        waves: dict[str, list[Tensor]] = {}
        factors: dict[str, float] = {}
        seconds = sum(len(clip.wave) for clip in clips) / pl_module.mel.config.sample_rate
        for mode, vocode in self._modes(pl_module, datamodule.generated_mels is not None):
            start = time.perf_counter()
            # On the CPU, so that the clock has waited for the device.
            waves[mode] = [vocode(clip).cpu() for clip in clips]
            factors[mode] = (time.perf_counter() - start) / seconds
            stop_if_requested(trainer)
        mels = {mode: [self._mel(pl_module, wave) for wave in decoded] for mode, decoded in waves.items()}
        for mode in waves:
            scores = self._score(pl_module, mode, waves[mode], mels[mode], clips)
            self.rows[mode] = scores | {"real_time_factor": factors[mode]}
        gap = mel_gap(mels["streamed"], mels["copy_synthesis"], sync_device=pl_module.device)
        self.rows["streamed"]["gap"] = gap
        values = {f"{mode}/{name}": value for mode in waves for name, value in self.rows[mode].items()}
        values["streamed/exact_gap"] = self._exact_gap(pl_module, clips, waves["copy_synthesis"])
        trained = self.rows["generated" if "generated" in waves else "copy_synthesis"]
        values |= {"val/loss": trained["mel_l1"], "val/pesq_wb": trained["pesq_wb"]}
        if trainer.is_global_zero:
            self._keep(trainer, pl_module, clips, waves, mels)
        return values

    def state_dict(self) -> dict[str, Any]:
        """Returns the results of the last validation, and the clips and settings that they belong to."""
        return super().state_dict() | {"heard": self.settings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the results of the last validation."""
        super().load_state_dict(state_dict)
        self.settings = state_dict["heard"]

    # -- vocoding -------------------------------------------------------------------------------------

    def _clips(self, module: VocoderModule, datamodule: ShardDataModule, trainer: L.Trainer) -> list[_Clip]:
        clips = []
        for i, drawn in enumerate(datamodule.rank_clips):
            number = trainer.global_rank + i * trainer.world_size  # the same with any number of ranks
            wave, generated = torch.from_numpy(drawn.clip.wave).to(module.device), None
            if datamodule.generated_mels is not None:
                generated = datamodule.generated_mels.teacher.predict_clip_mel(drawn, number, module.device)
            clips.append(_Clip(drawn.clip.key, wave, self._mel(module, wave), generated))
        return clips

    def _modes(self, module: VocoderModule, generated: bool) -> Iterator[tuple[str, Callable[[_Clip], Tensor]]]:
        """Yields the modes and what vocodes a clip to a wave [N]; Griffin-Lim's unless they have rows."""
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
        return torch.cat([*stream_mel(vocoder, mel, self.chunk_frames, self.lookahead_frames, exact)])

    def _exact_gap(self, module: VocoderModule, clips: list[_Clip], whole: list[Tensor]) -> float:
        """Returns the largest difference of a sample between whole and exactly streamed waves of the kept clips."""
        kept = kept_clips(len(clips), self.keep)
        waves = ((self._stream(module.average, clips[i].mel, exact=True).cpu(), whole[i]) for i in kept)
        return max((float((a - b).abs().max()) for a, b in waves), default=float("nan"))

    def _mel(self, module: VocoderModule, wave: Tensor) -> Tensor:
        return module.mel(wave.to(module.device)[None])[0]

    # -- scoring and keeping --------------------------------------------------------------------------

    def _score(
        self, module: VocoderModule, mode: str, waves: list[Tensor], mels: list[Tensor], clips: list[_Clip]
    ) -> dict[str, float]:
        """Returns the mean scores of a mode over the clips of all ranks."""
        is_streamed, hop = mode in STREAMED, module.mel.config.hop_length
        pending = [
            self.scorer.start(clip.key, wave, clip.wave, mel, clip.mel, self._edges(clip, is_streamed) * hop)
            for clip, wave, mel in zip(clips, waves, mels, strict=True)
        ]
        frames = [len(clip.mel) for clip in clips]
        means = self.mean_scores([scores.collect() for scores in pending], frames, module.device)
        return means if is_streamed else {name: value for name, value in means.items() if name not in EDGE_SCORES}

    def _edges(self, clip: _Clip, is_streamed: bool = True) -> Tensor:
        """Returns the frames at which chunks begin, except the first, [E]; empty for a clip vocoded whole."""
        end = max(self.chunk_frames, len(clip.mel) if is_streamed else 0)
        return torch.arange(self.chunk_frames, end, self.chunk_frames)

    def _keep(
        self,
        trainer: L.Trainer,
        module: VocoderModule,
        clips: list[_Clip],
        waves: dict[str, list[Tensor]],
        mels: dict[str, list[Tensor]],
    ) -> None:
        self.samples, config = samples_folder(trainer), module.mel.config
        names = {"made": "copy_synthesis", "streamed": "streamed"}
        for i in kept_clips(len(clips), self.keep):
            sounds = {"reference": clips[i].wave} | {name: waves[mode][i] for name, mode in names.items()}
            shown = {"reference": clips[i].mel} | {name: mels[mode][i] for name, mode in names.items()}
            rates, edges = dict.fromkeys(sounds, config.sample_rate), self._edges(clips[i])
            keep_clip(trainer, self.samples, clips[i].key, sounds, rates, shown, edges, config.frame_rate, True)
