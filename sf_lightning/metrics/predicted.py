"""Opinion scores predicted without a reference: NISQA and DNSMOS, where their weights are installed."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from sf_lightning.audio.silence import is_silent
from sf_lightning.metrics.scorers import MIN_SAMPLES

OpinionPredictor: TypeAlias = Callable[[Tensor, int], float]
"""`(wave [N], sample rate in Hz) -> score`, NaN where the score is undefined."""

HOME = Path("~/.torchmetrics")
"""Where torchmetrics stores weights; it would download missing ones, which is never done here."""

REQUIREMENTS = {
    "nisqa": (("NISQA/nisqa.tar",), ("librosa", "requests")),
    "dnsmos": (
        ("DNSMOS/DNSMOS/model_v8.onnx", "DNSMOS/DNSMOS/sig_bak_ovr.onnx"),
        ("librosa", "requests", "onnxruntime"),
    ),
}
"""Required files under `HOME`, and required packages."""


def available_predictors() -> tuple[dict[str, OpinionPredictor], dict[str, str]]:
    """Returns the predictors that work here by name, and by name why the others do not."""
    reasons = {name: _reason_unavailable(name) for name in PREDICTORS}
    unavailable = {name: reason for name, reason in reasons.items() if reason is not None}
    return {name: predict for name, predict in PREDICTORS.items() if name not in unavailable}, unavailable


def _reason_unavailable(name: str) -> str | None:
    """Returns why a predictor cannot be used, or None; predicts once, since its weights may be broken."""
    files, packages = REQUIREMENTS[name]
    if missing := [file for file in files if not (HOME.expanduser() / file).is_file()]:
        return f"no {HOME / missing[0]}"
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        return f"no package {missing[0]}"
    try:
        score = PREDICTORS[name](torch.sin(torch.arange(16000) / 10.0), 16000)
    except Exception as error:  # third-party code and weights may fail in any way; the evaluation continues
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return None if math.isfinite(score) else "its score is not finite"


def nisqa(wave: Tensor, sample_rate: int) -> float:
    """Returns NISQA's overall quality (Mittag et al. 2021), 1 to 5."""
    from torchmetrics.functional.audio.nisqa import non_intrusive_speech_quality_assessment as predict

    return _score_or_nan(lambda: predict(wave.float().cpu(), sample_rate)[0], wave)


def dnsmos(wave: Tensor, sample_rate: int) -> float:
    """Returns DNSMOS's overall quality (P.835; Reddy et al. 2022), 1 to 5."""
    from torchmetrics.functional.audio.dnsmos import deep_noise_suppression_mean_opinion_score as predict

    return _score_or_nan(lambda: predict(wave.float().cpu(), sample_rate, False)[-1], wave)


def _score_or_nan(predict: Callable[[], Tensor], wave: Tensor) -> float:
    """Returns the prediction, or NaN where the wave is too short, silent or not finite, or is refused."""
    if len(wave) < MIN_SAMPLES or not wave.isfinite().all() or is_silent(wave.cpu().numpy()):
        return float("nan")
    try:
        return float(predict())
    except RuntimeError:  # NISQA accepts at most 52 s
        return float("nan")


PREDICTORS: dict[str, OpinionPredictor] = {"nisqa": nisqa, "dnsmos": dnsmos}
