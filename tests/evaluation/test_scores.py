"""Scores of single clips, their means, and the predictors that are available."""

import math
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

from sf_lightning.evaluation.scores import ClipScorer, PendingScores
from sf_lightning.metrics import predicted
from sf_lightning.metrics.speech import PERCEPTUAL, ScoreMeans, mel_gap
from tests.toys.audio import synthetic_voice


def test_noise_lowers_every_score_and_silence_has_none() -> None:
    recording = torch.from_numpy(synthetic_voice(1.5))
    noisy = recording + 0.05 * torch.randn(len(recording), generator=torch.Generator().manual_seed(0))
    mel, edges = torch.zeros(150, 80), torch.arange(1, 6) * 3840
    scorer = ClipScorer(embed=lambda wave: np.abs(np.fft.rfft(wave[:8000]))[:500])
    waves = recording, noisy, torch.zeros_like(recording)
    pending = [scorer.start("a", wave, recording, mel, mel, edges) for wave in waves]
    equal, worse, silent = (scores.collect() for scores in pending)
    assert set(equal) == set(scorer.names)
    for name in (*PERCEPTUAL, "similarity"):
        assert equal[name] > worse[name] and math.isnan(silent[name])
    assert equal["similarity"] == pytest.approx(1.0, abs=1e-4) and silent["mel_l1"] == 0.0


def test_only_copies_have_scores_of_spectral_distance_and_periodicity() -> None:
    wave, mel, edges = (
        torch.from_numpy(synthetic_voice(1.0)),
        torch.zeros(100, 80),
        torch.empty(0, dtype=torch.long),
    )
    decoded, copied = (
        ClipScorer(copies=copies).start("a", 0.5 * wave, wave, mel, mel, edges).collect()
        for copies in (False, True)
    )
    assert copied.keys() - decoded.keys() == {"mr_stft", "periodicity"}
    assert copied["periodicity"] < 0.05 and copied["mr_stft"] > 0.5


def test_another_sample_rate_is_refused_with_both_rates() -> None:
    with pytest.raises(ValueError, match=r"the mel has 24000 Hz, but .* are defined at 16000 Hz"):
        ClipScorer(sample_rate=24000)


def test_a_failed_score_is_known_and_raised_when_collected() -> None:
    broken: Future[float] = Future()
    broken.set_exception(RuntimeError("stoi failed"))
    pending = PendingScores({"mel_l1": 1.0}, {"stoi": broken})
    assert pending.done and pending.failed
    with pytest.raises(RuntimeError, match="stoi failed"):
        pending.collect()


def test_means_weigh_errors_by_frames_leave_nan_out_and_count_undefined_scores() -> None:
    means = ScoreMeans(["pesq_wb", "stoi", "mel_l1", "seam_db"])
    means.update({"pesq_wb": 2.0, "stoi": math.nan, "mel_l1": 1.0, "seam_db": 3.0, "similarity": 1.0}, 300)
    means.update({"pesq_wb": math.nan, "stoi": math.nan, "mel_l1": 5.0, "seam_db": math.nan}, 100)
    values = means.compute()
    assert math.isnan(values.pop("stoi"))
    assert values == {"pesq_wb": 2.0, "mel_l1": 2.0, "seam_db": 3.0, "no_score": 3.0}


def test_the_gap_is_a_mean_over_frames() -> None:
    streamed, offline = (
        [torch.zeros(30, 8), torch.zeros(10, 8)],
        [torch.full((30, 8), 1.0), torch.full((10, 8), 5.0)],
    )
    assert mel_gap(streamed, offline) == 2.0


def test_predictors_without_working_weights_are_left_out_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicted, "HOME", tmp_path)
    predictors, missing = predicted.available_predictors()
    assert not predictors and "nisqa.tar" in missing["nisqa"] and "dnsmos" in missing
    monkeypatch.setattr("torchmetrics.functional.audio.nisqa.NISQA_DIR", str(tmp_path / "NISQA"))
    (tmp_path / "NISQA").mkdir()
    (tmp_path / "NISQA" / "nisqa.tar").write_bytes(b"broken")
    assert "Error" in predicted.available_predictors()[1]["nisqa"]
    monkeypatch.setitem(predicted.PREDICTORS, "nisqa", lambda wave, rate: 3.0)
    predictors, missing = predicted.available_predictors()
    assert list(predictors) == ["nisqa"] and list(missing) == ["dnsmos"]
