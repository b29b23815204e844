"""Opinion scores predicted from the sound alone, without a reference: NISQA and DNSMOS, where their weights are."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from sf_lightning.metrics.scorers import MIN_SAMPLES, SILENCE_PEAK_TO_PEAK

Judge: TypeAlias = Callable[[Tensor, int], float]
"""`(wave [N], Hz) -> score`, NaN where it is undefined."""

HOME = Path("~/.torchmetrics")
"""Where torchmetrics keeps weights; it brings what is missing from the network, which nothing here asks it to."""

NEEDED = {
    "nisqa": (("NISQA/nisqa.tar",), ("librosa", "requests")),
    "dnsmos": (
        ("DNSMOS/DNSMOS/model_v8.onnx", "DNSMOS/DNSMOS/sig_bak_ovr.onnx"),
        ("librosa", "requests", "onnxruntime"),
    ),
}
"""Files under `HOME`, and packages."""


def judges() -> tuple[dict[str, Judge], dict[str, str]]:
    """Returns those that can be had here, by name, and why the others cannot."""
    reasons = {name: _reason_against(name) for name in JUDGES}
    lacking = {name: reason for name, reason in reasons.items() if reason is not None}
    return {name: judge for name, judge in JUDGES.items() if name not in lacking}, lacking


def _reason_against(name: str) -> str | None:
    """What one of them lacks here, or None; it is tried once, for weights may be broken."""
    files, packages = NEEDED[name]
    if missing := [each for each in files if not (HOME.expanduser() / each).is_file()]:
        return f"no {HOME / missing[0]}"
    if lacking := [each for each in packages if importlib.util.find_spec(each) is None]:
        return f"no package {lacking[0]}"
    try:
        score = JUDGES[name](torch.sin(torch.arange(16000) / 10.0), 16000)
    except Exception as error:  # whatever a foreign model does with foreign weights: the others go on
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return None if math.isfinite(score) else "its score is not finite"


def nisqa(wave: Tensor, sample_rate: int) -> float:
    """Returns NISQA's overall quality (Mittag et al. 2021), 1 to 5."""
    from torchmetrics.functional.audio.nisqa import non_intrusive_speech_quality_assessment as judge

    return _judged(lambda: judge(wave.float().cpu(), sample_rate)[0], wave)


def dnsmos(wave: Tensor, sample_rate: int) -> float:
    """Returns DNSMOS's overall quality (P.835; Reddy et al. 2022), 1 to 5."""
    from torchmetrics.functional.audio.dnsmos import deep_noise_suppression_mean_opinion_score as judge

    return _judged(lambda: judge(wave.float().cpu(), sample_rate, False)[-1], wave)


def _judged(judge: Callable[[], Tensor], wave: Tensor) -> float:
    if len(wave) < MIN_SAMPLES or not wave.isfinite().all() or wave.max() - wave.min() < SILENCE_PEAK_TO_PEAK:
        return float("nan")
    try:
        return float(judge())
    except RuntimeError:  # NISQA takes clips of at most 52 s
        return float("nan")


JUDGES: dict[str, Judge] = {"nisqa": nisqa, "dnsmos": dnsmos}
