"""Scores one clip against its reference with PESQ-WB, STOI, ViSQOL or by periodicity; what a worker process runs.

Knows nothing of torch, batches or metrics: a worker imports this file alone, and torch would cost it seconds
and hundreds of megabytes. The three libraries are imported by the scorer that needs them.

One rule for all three: **a score that is undefined is NaN**. Left alone, the libraries answer such clips each
in its own way: PESQ raises three kinds of error; STOI returns 0.0 or 1e-5, which average in silently; ViSQOL
raises two kinds, and gives speech a 4.7 against a silent reference.

N samples of a clip.
"""

import functools
import importlib.util
import logging
import math
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from visqol.visqol_manager import VisqolManager

SAMPLE_RATE = 16_000
"""Hz. PESQ's wide band and ViSQOL's speech mode are defined here."""

MIN_SAMPLES = SAMPLE_RATE // 4
"""Below a quarter of a second PESQ refuses, and so do the others (STOI wants 0.41 s, ViSQOL 0.64 s)."""

SILENCE_PEAK_TO_PEAK = 2.0**-15
"""One step of 16-bit audio: a clip that moves less is silent in any file."""

WORKER_IGNORES = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C and Slurm's warnings reach every descendant of a job. They are meant for the trainer, not for us."""

Scorer: TypeAlias = Callable[[np.ndarray, np.ndarray], float]
"""`(reference [N], degraded [N]) -> score`, both float32 at 16 kHz. Pickled by name, so no lambda."""


def pesq_wb(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Score with wide-band PESQ (P.862.2), about 1 to 4.64, or NaN where it is undefined.

    Args:
        reference: The clean clip `[N]`, float32 at 16 kHz.
        degraded: The clip to judge `[N]`. The longer of the two is cut to the shorter.

    A clip of more than 50 utterances overruns a table of the C code, which may crash the process (seen with
    60 of them in 30 s). In a `ScorePool` a crash is a NaN.
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
    """Score with STOI (Taal et al. 2011), at most 1, or NaN where it is undefined.

    Args:
        reference: The clean clip `[N]`, float32 at 16 kHz.
        degraded: The clip to judge `[N]`. The longer of the two is cut to the shorter.
    """
    from pystoi import stoi as pystoi_stoi

    too_few_frames = 1e-5  # what pystoi returns, with a warning, below 30 frames that are not silent

    pair = _comparable(reference, degraded)
    if pair is None:
        return math.nan
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Not enough STFT frames", category=RuntimeWarning)
        score = float(pystoi_stoi(*pair, SAMPLE_RATE))
    return math.nan if score == too_few_frames else _finite_or_nan(score)


def visqol(reference: np.ndarray, degraded: np.ndarray, sample_rate: int = SAMPLE_RATE) -> float:
    """Score with ViSQOL v3 in speech mode with the lattice model, 1 to 5, or NaN where it is undefined.

    Args:
        reference: The clean clip `[N]`, float32.
        degraded: The clip to judge `[N]`. The longer of the two is cut to the shorter.
        sample_rate: Hz of both. Another rate than 16,000 serves only to check the values that Google
            publishes, all of which are at 48,000.

    Raises:
        RuntimeError: The lattice model or its runtime is missing.
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
    except (
        IndexError,
        ValueError,
    ):  # no patch of the reference is voiced, or none fits into the degraded clip
        return math.nan


def periodicity_error(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Returns how far the periodicity of a clip is from its reference's, 0 to 1, or NaN where it is undefined.

    The root mean square over frames, as CARGAN's (arXiv 2110.10139), by which BigVGAN's authors judge theirs; of
    the periodicity that YIN finds, while they ask a network whose weights must be downloaded. A vocoder that adds
    noise or a buzz, or breaks a voice, shows here.

    Args:
        reference: The clean clip `[N]`, float32 at 16 kHz.
        degraded: The clip to judge `[N]`. The longer of the two is cut to the shorter.
    """
    pair = _comparable(reference, degraded)
    if pair is None:
        return math.nan
    return float(np.sqrt(np.mean((periodicity(pair[0]) - periodicity(pair[1])) ** 2)))


YIN_WINDOW, YIN_HOP = 512, 160
"""Samples that are compared with themselves later on, and between frames."""

YIN_LAGS = (SAMPLE_RATE // 500, SAMPLE_RATE // 60)
"""Periods of voices of 500 down to 60 Hz, in samples."""

YIN_FLOOR = 1e-6
"""Mean square below which nothing has a period: -60 dB."""


def periodicity(wave: np.ndarray) -> np.ndarray:
    """Returns how periodic each frame is, 0 to 1 `[T]`: 1 - the least of YIN's normalised differences.

    That is equation 8 of de Cheveigne & Kawahara (2002); librosa has it only within `pyin`, which compiles for 20 s
    and then takes 110 ms for a second of speech, where this takes 6.

    Args:
        wave: `[N]` at 16 kHz, of 0.05 s or more.
    """
    shortest, longest = YIN_LAGS
    frames = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float64), YIN_WINDOW + longest)[::YIN_HOP]
    n_fft = 1 << (2 * YIN_WINDOW + longest).bit_length()
    heads = np.fft.rfft(frames[:, :YIN_WINDOW], n_fft)
    products = np.fft.irfft(np.fft.rfft(frames, n_fft) * heads.conj(), n_fft)[:, : longest + 1]
    summed = np.pad(np.cumsum(frames**2, axis=1), ((0, 0), (1, 0)))
    energy = summed[:, YIN_WINDOW:] - summed[:, : longest + 1]  # of the window that begins at each lag
    # What is softer than the floor differs from itself as noise does.
    difference = np.maximum(energy[:, :1] + energy - 2 * products, 0)[:, 1:] + YIN_FLOOR * YIN_WINDOW
    mean = np.cumsum(difference, axis=1) / np.arange(1, longest + 1)
    return np.clip(1 - (difference / mean)[:, shortest - 1 :].min(axis=1), 0, 1)


def require_visqol_lattice() -> None:
    """Make sure that ViSQOL has its lattice model, whose absence would change every score.

    Without its extra `lattice`, visqol-python falls back to a polynomial: 4.22 instead of 1.70 on one clip.

    Raises:
        RuntimeError: The package, the model file or the runtime is missing.
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
    """Answer scoring tasks from stdin on stdout until stdin ends: the whole life of a worker process.

    A task is a pickle of `(scorer, reference, degraded)`, pickled once more so that one which cannot be read
    leaves the stream in step. An answer is a pickle of `(score, None)` or `(NaN, traceback)`.
    """
    for ignored in WORKER_IGNORES:
        signal.signal(ignored, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not land among the answers
    while True:
        try:
            task: bytes = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: tuple[Any, str | None]
        try:
            scorer, reference, degraded = pickle.loads(task)
            answer = (scorer(reference, degraded), None)
        except Exception:  # the boundary of the process: every error goes to the one who asked
            answer = (math.nan, traceback.format_exc())
        answers.write(pickle.dumps(answer))
        answers.flush()


_LATTICE_MISSING = "ViSQOL needs its lattice model (pip install 'visqol-python[accel,lattice]')"

# Numba's thread pool aborts the process when two threads enter it.
_ONE_VISQOL_AT_A_TIME = threading.Lock()


@functools.cache
def _visqol_manager() -> "VisqolManager":
    """Build this process's ViSQOL and see for itself that it maps with the lattice."""
    require_visqol_lattice()
    from visqol.quality_mapper import TFLiteSpeechQualityMapper
    from visqol.visqol_manager import VisqolManager

    logging.getLogger("visqol").setLevel(logging.ERROR)  # it warns of each clip whose ends do not align
    manager = VisqolManager()
    manager.init(use_speech_mode=True, use_lattice_model=True)  # True raises; its default, None, falls back
    if not isinstance(manager.quality_mapper, TFLiteSpeechQualityMapper):
        raise RuntimeError(f"{_LATTICE_MISSING}: got a {type(manager.quality_mapper).__name__}")
    return manager


def _comparable(reference: np.ndarray, degraded: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Cut both clips to the shorter, or return None where no measure is defined.

    That is where a clip is too short, silent or not finite.

    Raises:
        ValueError: A clip is not one channel `[N]`.
    """
    if reference.ndim != 1 or degraded.ndim != 1:
        raise ValueError(f"a clip is [N], got reference {reference.shape} and degraded {degraded.shape}")
    num_samples = min(len(reference), len(degraded))
    if num_samples < MIN_SAMPLES:
        return None
    pair = tuple(np.ascontiguousarray(clip[:num_samples], dtype=np.float32) for clip in (reference, degraded))
    for clip in pair:
        if not np.isfinite(clip).all() or np.ptp(clip) < SILENCE_PEAK_TO_PEAK:
            return None
    return pair[0], pair[1]


def _finite_or_nan(score: float) -> float:
    return float(score) if math.isfinite(score) else math.nan
