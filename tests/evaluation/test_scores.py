"""What a clip is scored with, and what is left out."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sf_lightning.evaluation.scores import Scoring
from sf_lightning.metrics import predicted
from tests.toys.audio import synthetic_voice


def test_a_silent_clip_has_no_scores_and_a_bad_one_has_worse_than_a_good_one() -> None:
    said = torch.from_numpy(synthetic_voice(1.5))
    noisy = said + 0.05 * torch.randn(len(said), generator=torch.Generator().manual_seed(0))
    mel, edges = torch.zeros(150, 80), torch.arange(1, 6) * 3840
    scoring = Scoring(embed=lambda wave: np.abs(np.fft.rfft(wave[:8000]))[:500])
    pending = [scoring.start("a", wave, said, mel, mel, edges) for wave in (said, noisy, torch.zeros_like(said))]
    same, worse, silent = (each.collect() for each in pending)
    for name in ("pesq_wb", "stoi", "visqol", "similarity"):
        assert same[name] > worse[name] and math.isnan(silent[name])
    assert same["similarity"] == pytest.approx(1.0, abs=1e-4) and silent["mel_l1"] == 0.0


def test_predicted_opinions_are_left_out_with_a_reason_unless_their_weights_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicted, "HOME", tmp_path)
    found, lacking = predicted.judges()
    assert not found and "no " in lacking["nisqa"] and "nisqa.tar" in lacking["nisqa"] and "dnsmos" in lacking
    monkeypatch.setattr("torchmetrics.functional.audio.nisqa.NISQA_DIR", str(tmp_path / "NISQA"))
    (tmp_path / "NISQA").mkdir()
    (tmp_path / "NISQA" / "nisqa.tar").write_bytes(b"broken")
    assert "Error" in predicted.judges()[1]["nisqa"]
    monkeypatch.setitem(predicted.JUDGES, "nisqa", lambda wave, rate: 3.0)
    found, lacking = predicted.judges()
    assert list(found) == ["nisqa"] and list(lacking) == ["dnsmos"]
