"""Scores one clip against its reference with PESQ-WB, STOI, ViSQOL or by periodicity; runs in worker processes.

Independent of torch, batches and metrics: a worker imports this file alone, since torch would take seconds and
hundreds of megabytes. Each scorer imports its own library.

**A score that is undefined is NaN.** The libraries handle such clips differently: PESQ raises three kinds of error;
STOI returns 0.0 or 1e-5, which would enter means unnoticed; ViSQOL raises two kinds of error, and scores speech 4.7
against a silent reference.

Letters: N samples of a clip.
"""

import contextlib
import functools
import importlib.util
import logging
import math
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from sf_lightning.audio.silence import is_silent

if TYPE_CHECKING:
    from visqol.visqol_manager import VisqolManager

SAMPLE_RATE = 16_000
"""Sample rate in Hz for which wide-band PESQ and ViSQOL's speech mode are defined."""

MIN_SAMPLES = SAMPLE_RATE // 4
"""PESQ fails below a quarter of a second, and so do the others (STOI below 0.41 s, ViSQOL below 0.64 s)."""

WORKER_IGNORES = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C and Slurm's warnings reach every process of a job, but are meant for the trainer alone."""

Scorer: TypeAlias = Callable[[np.ndarray, np.ndarray], float]
"""`(reference [N], degraded [N]) -> score`: a clean clip and the clip to score, float32 at 16 kHz; the longer one
is truncated to the shorter. It is pickled by name, so not a lambda."""


def pesq_wb(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Returns wide-band PESQ (P.862.2) of a `Scorer`'s clips, about 1 to 4.64, or NaN if it is undefined.

    A clip of more than 50 utterances overruns a table of the C code, which may crash the process (observed with
    60 utterances in 30 s). A `ScorePool` turns a crash into NaN.
    """
    from pesq import BufferTooShortError, NoUtterancesError, pesq

    pair = _comparable(reference, degraded)
    if pair is None:
        return math.nan
    try:
        return _finite_or_nan(pesq(SAMPLE_RATE, *pair, "wb"))
    except (NoUtterancesError, BufferTooShortError, ValueError):  # ValueError: its own score came out as NaN
        return math.nan


def stoi(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Returns STOI (Taal et al. 2011) of a `Scorer`'s clips, at most 1, or NaN if it is undefined."""
    from pystoi import stoi as pystoi_stoi

    too_few_frames = 1e-5  # returned by pystoi, with a warning, below 30 frames that are not silent

    pair = _comparable(reference, degraded)
    if pair is None:
        return math.nan
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Not enough STFT frames", category=RuntimeWarning)
        score = float(pystoi_stoi(*pair, SAMPLE_RATE))
    return math.nan if score == too_few_frames else _finite_or_nan(score)


def visqol(reference: np.ndarray, degraded: np.ndarray, sample_rate: int = SAMPLE_RATE) -> float:
    """Returns ViSQOL v3 (speech mode, lattice model) of a `Scorer`'s clips, 1 to 5, or NaN if it is undefined.

    Args:
        reference: Clean clip [N].
        degraded: Clip to score [N].
        sample_rate: Sample rate of both in Hz. Another rate than 16,000 serves only to check the values that Google
            publishes, all of which are at 48,000.

    Raises:
        RuntimeError: if the lattice model or its runtime is missing.
    """
    pair = _comparable(reference, degraded)
    if pair is None:
        return math.nan
    manager = _visqol_manager()
    from visqol.audio_utils import AudioSignal

    signals = [AudioSignal(clip, sample_rate) for clip in pair]
    try:
        with _ONE_VISQOL_AT_A_TIME:
            return _finite_or_nan(manager.run_from_signals(*signals).moslqo)
    except (IndexError, ValueError):  # no patch of the reference is voiced, or none fits into the degraded clip
        return math.nan


def periodicity_error(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Returns the RMS error of periodicity of a `Scorer`'s clips over frames, 0 to 1, or NaN if it is undefined.

    As in CARGAN (arXiv 2110.10139), which BigVGAN's authors report, but with the periodicity of YIN where they use
    a network whose weights must be downloaded. It shows vocoders that add noise or a buzz, or break the voice.
    """
    pair = _comparable(reference, degraded)
    if pair is None:
        return math.nan
    return float(np.sqrt(np.mean((periodicity(pair[0]) - periodicity(pair[1])) ** 2)))


YIN_WINDOW, YIN_HOP = 512, 160
"""Window of the difference function and hop between frames, in samples."""

YIN_LAGS = (SAMPLE_RATE // 500, SAMPLE_RATE // 60)
"""Shortest and longest period in samples: pitches from 500 down to 60 Hz."""

YIN_FLOOR = 1e-6
"""Mean square below which a frame has no period: -60 dB."""


def periodicity(wave: np.ndarray) -> np.ndarray:
    """Returns the periodicity of each frame, 0 to 1 [T]: 1 minus the minimum of YIN's normalized difference.

    Equation 8 of de Cheveigne & Kawahara (2002). librosa has it only within `pyin`, which compiles for 20 s and
    then takes 110 ms for a second of speech instead of 6.

    Args:
        wave: Wave [N] at 16 kHz of at least 0.05 s.
    """
    shortest, longest = YIN_LAGS
    frames = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float64), YIN_WINDOW + longest)[::YIN_HOP]
    n_fft = 1 << (2 * YIN_WINDOW + longest).bit_length()
    heads = np.fft.rfft(frames[:, :YIN_WINDOW], n_fft)
    products = np.fft.irfft(np.fft.rfft(frames, n_fft) * heads.conj(), n_fft)[:, : longest + 1]
    summed = np.pad(np.cumsum(frames**2, axis=1), ((0, 0), (1, 0)))
    energy = summed[:, YIN_WINDOW:] - summed[:, : longest + 1]  # energy of the window that begins at each lag
    # Frames below the threshold have no period.
    difference = np.maximum(energy[:, :1] + energy - 2 * products, 0)[:, 1:] + YIN_FLOOR * YIN_WINDOW
    mean = np.cumsum(difference, axis=1) / np.arange(1, longest + 1)
    return np.clip(1 - (difference / mean)[:, shortest - 1 :].min(axis=1), 0, 1)


def require_visqol_lattice() -> None:
    """Checks that ViSQOL has its lattice model, without which every score would differ.

    Without its extra `lattice`, visqol-python falls back to a polynomial: 4.22 instead of 1.70 on one clip.

    Raises:
        RuntimeError: if the package, the model file or the runtime is missing.
    """
    spec = importlib.util.find_spec("visqol")
    folders = [] if spec is None else spec.submodule_search_locations or []
    if not any(path for folder in folders for path in Path(folder).glob("model/lattice_*.tflite")):
        raise RuntimeError(f"{_LATTICE_MISSING}: found no visqol/model/lattice_*.tflite")
    try:
        import ai_edge_litert.interpreter  # noqa: F401
    except ImportError as error:
        raise RuntimeError(f"{_LATTICE_MISSING}: {error}") from error


def serve() -> None:
    """Runs a worker process: reads tasks from stdin and writes answers to stdout until stdin ends.

    A task is a pickle of `(scorer, reference, degraded)`, pickled once more so that a task that cannot be unpickled
    does not desynchronize the stream. An answer is a pickle of `(score, None)` or `(NaN, traceback)`.
    """
    for ignored in WORKER_IGNORES:
        signal.signal(ignored, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    while True:
        try:
            task: bytes = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: tuple[Any, str | None]
        try:
            scorer, reference, degraded = pickle.loads(task)
            answer = (scorer(reference, degraded), None)
        except Exception:  # the boundary of the process: every error is sent to the parent
            answer = (math.nan, traceback.format_exc())
        answers.write(pickle.dumps(answer))
        answers.flush()


_LATTICE_MISSING = "ViSQOL needs its lattice model (pip install 'visqol-python[accel,lattice]')"

# Numba's thread pool aborts the process when two threads enter it.
_ONE_VISQOL_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def _filtered_stderr(line: str) -> Iterator[None]:
    """Drops one line that C++ code writes to stderr, and passes everything else on."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as captured, open(os.dup(2), "wb") as stderr:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr.fileno(), 2)
            captured.seek(0)
            stderr.writelines(text for text in captured if text.strip() != line.encode())


@functools.cache
def _visqol_manager() -> "VisqolManager":
    """Creates this process's ViSQOL and checks that it uses the lattice model."""
    require_visqol_lattice()
    from visqol.quality_mapper import TFLiteSpeechQualityMapper
    from visqol.visqol_manager import VisqolManager

    logging.getLogger("visqol").setLevel(logging.ERROR)  # it warns about each clip whose ends do not align
    manager = VisqolManager()
    with _filtered_stderr("INFO: Created TensorFlow Lite XNNPACK delegate for CPU."):
        manager.init(use_speech_mode=True, use_lattice_model=True)  # True raises; its default, None, falls back
    if not isinstance(manager.quality_mapper, TFLiteSpeechQualityMapper):
        raise RuntimeError(f"{_LATTICE_MISSING}: got a {type(manager.quality_mapper).__name__}")
    return manager


def _comparable(reference: np.ndarray, degraded: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns both clips truncated to the shorter, or None if one is too short, silent or not finite."""
    if reference.ndim != 1 or degraded.ndim != 1:
        raise ValueError(f"got clips of shape {reference.shape} and {degraded.shape}: expected [N], one channel")
    num_samples = min(len(reference), len(degraded))
    if num_samples < MIN_SAMPLES:
        return None
    pair = tuple(np.ascontiguousarray(clip[:num_samples], dtype=np.float32) for clip in (reference, degraded))
    for clip in pair:
        if not np.isfinite(clip).all() or is_silent(clip):
            return None
    return pair[0], pair[1]


def _finite_or_nan(score: float) -> float:
    return float(score) if math.isfinite(score) else math.nan
