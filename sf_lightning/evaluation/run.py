"""Decodes and scores the clips of every system; finished results are kept and never computed again.

Perceptual scores are computed in worker processes while the next batch is decoded; a group's latency is measured
first, while nothing else runs.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from sf_lightning.audio.wave import write_wave
from sf_lightning.data.lanes import DrawnClip
from sf_lightning.evaluation.decoding import ClipEvaluator, HeldOutClip
from sf_lightning.evaluation.pictures import draw_mels
from sf_lightning.evaluation.results import SAMPLES, ClipScores, Results
from sf_lightning.evaluation.scores import ClipScorer, PendingScores
from sf_lightning.evaluation.selection import ClipSelection
from sf_lightning.evaluation.systems import OWN, System, SystemGroup, short_names
from sf_lightning.evaluation.table import MAX_TIMED, TIMES
from sf_lightning.files.atomic import atomic_path
from sf_lightning.files.digest import digest_of
from sf_lightning.metrics.pool import gather, shared_pool
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.latency import LatencyReport, measure_latency
from sf_lightning.streaming.state import Chunk

METRICS_NICE = 10
"""Niceness of the processes that score while another one decodes."""

MAX_PENDING = 32
"""Clips whose scores may be pending: bounds the memory where scoring is slower than decoding."""


@dataclass
class _PendingRows:
    """Rows whose scores are still being computed, in the order in which their clips were decoded."""

    results: Results
    on_added: Callable[[], None]
    queue: deque[tuple[ClipScores, PendingScores]] = field(default_factory=deque)

    def put(self, row: ClipScores, pending: PendingScores) -> None:
        """Queues a row, and adds finished ones to the results."""
        self.queue.append((row, pending))
        self.settle(MAX_PENDING)

    def settle(self, max_pending: int) -> None:
        """Adds finished rows to the results; blocks until at most `max_pending` rows are unfinished."""
        while self.queue and (len(self.queue) > max_pending or self.queue[0][1].done):
            self._add(*self.queue.popleft())
            self.on_added()

    def cancel(self) -> None:
        """Adds finished rows to the results and cancels all others."""
        while self.queue:
            row, pending = self.queue.popleft()
            if pending.done and not pending.failed:
                self._add(row, pending)
            pending.cancel()

    def _add(self, row: ClipScores, pending: PendingScores) -> None:
        self.results.add(replace(row, scores=row.scores | pending.collect()))


def input_digests(groups: Sequence[SystemGroup]) -> dict[str, str]:
    """Returns the digests of all checkpoints, layouts and vocoders of the groups, by name.

    Raises:
        FileNotFoundError, ValueError: if a vocoder is missing, or made for another mel.
    """
    digests = dict[str, str]()
    for group in groups:
        path, layout = group.candidate.path, group.systems[-1].layout
        digests[path] = group.candidate.digest
        if layout != OWN:
            digests[f"layout {layout} of {path}"] = digest_of(repr(group.layout))
    for vocoder, mel in dict.fromkeys((group.vocoder, group.candidate.description.model.mel) for group in groups):
        digests[f"vocoder {vocoder.checkpoint}"] = vocoder.make(mel).digest
    return digests


def evaluate(
    groups: Sequence[SystemGroup],
    selection: ClipSelection,
    results: Results,
    scorer: ClipScorer,
    progress: Callable[[str, int, int], None],
    keep: int = 3,
    batch: int = 8,
    device: str = "cpu",
) -> None:
    """Decodes and scores everything that the results lack.

    Args:
        groups: The systems.
        selection: The clips.
        results: Existing results, and where new ones are stored.
        scorer: Scorer of single clips.
        progress: Called with the current group, the number of finished pairs of clip and system, and their total.
        keep: Number of clips whose sound and pictures are kept.
        batch: Number of clips decoded side by side.
        device: Device that decodes.

    Raises:
        FileNotFoundError, ValueError: if a vocoder is missing or made for another mel, or if a checkpoint or a
            vocoder has changed since the evaluation started.
        FloatingPointError: if a decoder's output is not finite.
        RuntimeError: if a scorer failed.
    """
    missing = [selection.missing(group, results, keep) for group in groups]
    total, done, current = sum(map(len, missing)), 0, ""

    def count_one() -> None:
        nonlocal done
        done += 1
        progress(current, done, total)

    rows, decoders = _PendingRows(results, count_one), _DecoderCache(device, results.digests)
    if total:
        gather(shared_pool().warm_up())
        for pid in shared_pool().worker_pids:
            _lower_priority(pid)
    try:
        for group, pairs in zip(groups, missing, strict=True):
            if pairs:
                rows.settle(0)  # nothing else may run while latency is measured
                current = f"{short_names([group.candidate.path])[group.candidate.path]}, {group.systems[-1].layout}"
                progress(current, done, total)
                evaluator = ClipEvaluator(
                    decoders.decoder(group), scorer, replace(group.decode, mode="cached").resolve(group.layout)
                )
                run = _GroupRun(group, evaluator, results, selection.kept_keys(group, keep), rows.put, count_one)
                run.run(selection.clips(group), pairs, batch)
        rows.settle(0)
    except BaseException:
        rows.cancel()
        raise


@dataclass
class _GroupRun:
    """Decodes the clips of one group of systems."""

    group: SystemGroup
    evaluator: ClipEvaluator
    results: Results
    kept: set[str]
    put: Callable[[ClipScores, PendingScores], None]
    count_one: Callable[[], None]

    @torch.inference_mode()
    def run(self, drawn: Sequence[DrawnClip], missing: set[tuple[str, str]], batch_size: int) -> None:
        """Decodes the missing pairs of system id and clip key, and scores those that have no row yet."""
        keys, unscored = {key for _, key in missing}, missing - self.results.rows.keys()
        longest = sorted(drawn, key=lambda clip: -len(clip.clip.tokens))[:MAX_TIMED]
        timed = self.evaluator.prepare([clip for clip in longest if clip.clip.key in keys])
        latencies = self._measure_latencies(timed, unscored)
        lacking = [clip for clip in drawn if clip.clip.key in keys]
        for start in range(0, len(lacking), batch_size):
            batch = self.evaluator.prepare(lacking[start : start + batch_size])
            offline: list[Chunk] = []
            for system in self.group.systems:
                if system.kind != "copy_synthesis" and not offline:
                    offline = self.evaluator.offline(batch)
                numbers = [i for i, clip in enumerate(batch) if (system.id, clip.key) in missing]
                clips = [batch[i] for i in numbers]
                references = [offline[i] for i in numbers] if offline else []
                if system.kind == "copy_synthesis":
                    decoded = self.evaluator.vocode([clip.mel for clip in clips])
                elif system.kind == "offline":
                    decoded = references
                else:
                    decoded = self.evaluator.stream(clips, self.group.decode_config(system))
                for number, clip in enumerate(clips):
                    reference = references[number] if system.kind == "streamed" else None
                    if clip.key in self.kept:
                        self._keep(system, clip, decoded[number], reference)
                    if (system.id, clip.key) in unscored:
                        latency = latencies.get((system.id, clip.key))
                        times = {name: latency.values()[name] for name in TIMES} if latency else {}
                        chunk_ms = latency.chunk_ms if latency else ()
                        language, frames = clip.drawn.language, len(clip.mel)
                        row = ClipScores(system.id, clip.key, language, frames, times, chunk_ms, clip.drawn.speaker)
                        self.put(row, self.evaluator.score(clip, decoded[number], reference))
                    else:
                        self.count_one()

    def _measure_latencies(
        self, clips: Sequence[HeldOutClip], unscored: set[tuple[str, str]]
    ) -> dict[tuple[str, str], LatencyReport]:
        latencies = dict[tuple[str, str], LatencyReport]()
        for system in (system for system in self.group.systems if system.kind == "streamed"):
            chosen = [clip for clip in clips if (system.id, clip.key) in unscored]
            # A separate decoder: on a GPU each reading of the clock synchronizes, which would slow all others.
            timed = replace(self.evaluator.decoder, config=self.group.decode_config(system), timed=True)
            for clip in chosen[:1]:  # warm-up: the first call of all is slower than any other
                measure_latency(timed, clip.tokens[: 4 * timed.tokens_per_block], clip.speaker)
            latencies |= {(system.id, c.key): measure_latency(timed, c.tokens, c.speaker) for c in chosen}
        return latencies

    def _keep(self, system: System, clip: HeldOutClip, decoded: Chunk, offline: Chunk | None) -> None:
        """Writes a picture of the mels of a streamed clip, then the sounds: if they exist, so does the picture."""
        vocoder = self.evaluator.decoder.vocoder
        (self.results.folder / SAMPLES).mkdir(exist_ok=True)
        if offline is not None:
            mels = {"reference": clip.mel, "offline": offline.mel, "streamed": decoded.mel}
            with atomic_path(self.results.sample_path(clip.key, f"{system.id}.webp")) as path:
                draw_mels(mels, self.evaluator.edges(clip), vocoder.mel.frame_rate, path, width=8.0)
        sounds = {self.results.sample_path(clip.key, "reference.flac"): (clip.wave, vocoder.mel.sample_rate)}
        if not clip.drawn.is_own_reference:
            path = self.results.sample_path(clip.key, "voice.flac")
            sounds[path] = torch.from_numpy(clip.drawn.reference), vocoder.mel.sample_rate
        sounds[self.results.sound_path(system, clip.key)] = decoded.wave, vocoder.sample_rate
        for path, (wave, rate) in sounds.items():
            with atomic_path(path) as temporary:
                write_wave(temporary, wave.cpu().numpy(), rate)


def _lower_priority(pid: int) -> None:
    """Gives a scoring process a lower priority than decoding, whose threads would all wait for a preempted one."""
    with contextlib.suppress(OSError):  # it has ended, or belongs to another user; scoring then keeps its priority
        os.setpriority(os.PRIO_PROCESS, pid, max(METRICS_NICE, os.getpriority(os.PRIO_PROCESS, pid)))


class _DecoderCache:
    """Keeps the decoder of the last group, whose weights the next one often shares."""

    def __init__(self, device: str, digests: Mapping[str, str]) -> None:
        self.device, self.digests = device, digests
        self.last: tuple[SystemGroup, StreamingDecoder] | None = None

    def decoder(self, group: SystemGroup) -> StreamingDecoder:
        """Returns the decoder of a group.

        Raises:
            ValueError: if checkpoint or vocoder have changed since their digests were taken.
        """
        if self.last is None or (self.last[0].candidate, self.last[0].layout) != (group.candidate, group.layout):
            self.last = None  # freed before the next is loaded: two might not fit into memory
            trained = group.candidate.load()
            model = trained.model
            if group.layout != model.layout:
                model = replace(trained.description.model, layout=group.layout).build(model.state_dict())
            model = model.to(self.device)
        else:
            model = self.last[1].model
        vocoder = group.vocoder.make(model.mel.config)
        if self.digests[f"vocoder {group.vocoder.checkpoint}"] != vocoder.digest:
            raise ValueError(
                f"--vocoder {group.vocoder.checkpoint} changed during the evaluation: evaluate a copy of it"
            )
        if isinstance(vocoder, nn.Module):
            vocoder = vocoder.to(self.device)
        self.last = group, StreamingDecoder(model, vocoder, group.decode, timed=False)
        return self.last[1]
