"""The perceptual metrics: published values, NaN where undefined, and the worker processes."""

import copy
import ctypes
import functools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torchmetrics import MetricCollection

from sf_lightning.metrics import scorers
from sf_lightning.metrics.perceptual import PESQWB, STOI, PerceptualMetric, ViSQOL
from sf_lightning.metrics.pool import ScorePool, shared_pool
from sf_lightning.metrics.scorers import pesq_wb, require_visqol_lattice, stoi, visqol

ROOT = Path(__file__).parents[2]
CONFORMANCE = Path(os.environ.get("SF_CONFORMANCE", ROOT.parent / "shared" / "conformance"))
ALL_SCORERS = [pesq_wb, stoi, visqol]


def voice(seconds: float = 2.0) -> np.ndarray:
    """Returns three buzzing syllables a second with a pitch of 100 to 140 Hz, which all three measures accept."""
    time_s = np.arange(round(seconds * 16_000)) / 16_000
    phase = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * 0.7 * time_s)) / 16_000
    buzz = sum(np.sin(k * phase) / k for k in range(1, 30))
    syllables = np.clip(np.sin(2 * np.pi * 3 * time_s), 0, None)
    return (0.2 * syllables * buzz).astype(np.float32)


def noisy(clip: np.ndarray, level: float = 0.003) -> np.ndarray:
    """Returns the clip with white noise of a fixed seed."""
    return clip + np.float32(level) * np.random.default_rng(0).standard_normal(len(clip)).astype(np.float32)


def published(metric: str, mode: str | None = None) -> list[dict[str, Any]]:
    """Returns the cases of the conformance folder; an empty list if it is absent."""
    if not (CONFORMANCE / "conformance.json").is_file():
        return []
    cases: list[dict[str, Any]] = json.loads((CONFORMANCE / "conformance.json").read_text())["cases"]
    return [case for case in cases if case["metric"] == metric and case.get("mode") == mode]


def load(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns reference and degraded clip of a case, stereo averaged to mono."""
    pair = [soundfile.read(CONFORMANCE / case[key], dtype="float32", always_2d=True)[0] for key in ("ref", "deg")]
    return pair[0].mean(axis=1), pair[1].mean(axis=1)


def score_cases(scorer: scorers.Scorer, cases: list[dict[str, Any]]) -> list[float]:
    """Returns the score of each case; skips the test if there are none."""
    if not cases:
        pytest.skip(f"no conformance values at {CONFORMANCE}; set SF_CONFORMANCE")
    pairs = [load(case) for case in cases]
    return shared_pool().map(scorer, [pair[0] for pair in pairs], [pair[1] for pair in pairs])


@pytest.fixture(scope="module", autouse=True)
def compiled() -> Iterator[None]:
    """Compiles ViSQOL in the workers before the tests, and ends the workers after them."""
    for future in shared_pool().warm_up():
        assert 1 <= future.result() <= 5
    yield
    shared_pool().close()


@pytest.fixture
def small_pool() -> Iterator[ScorePool]:
    """Creates a pool of one worker."""
    pool = ScorePool(num_workers=1)
    yield pool
    pool.close()


class TestValues:
    """The scores are those of the reference implementations."""

    def test_visqol_agrees_with_the_values_that_google_publishes_for_the_lattice(self) -> None:
        cases = published("visqol_moslqo", "speech, lattice map")
        # Music against speech is published for 12 s against 3 s, but here the longer is truncated to the shorter.
        cases = [case for case in cases if not case["ref"].startswith("visqol/guitar")]
        scores = score_cases(functools.partial(visqol, sample_rate=48_000), cases)
        assert len(cases) == 3
        assert scores == pytest.approx([case["expected"] for case in cases], abs=0.01)

    def test_pesq_agrees_with_its_published_value(self) -> None:
        cases = [case for case in published("pesq_wb") if case["kind"] == "published"]
        assert score_cases(pesq_wb, cases) == pytest.approx([case["expected"] for case in cases], abs=1e-3)

    def test_stoi_agrees_with_its_published_value(self) -> None:
        cases = [case for case in published("stoi") if case["kind"] == "published"]
        assert score_cases(stoi, cases) == pytest.approx([case["expected"] for case in cases], abs=5e-3)

    @pytest.mark.parametrize("scorer", [pesq_wb, stoi])
    def test_real_speech_has_the_scores_of_the_libraries_themselves(self, scorer: scorers.Scorer) -> None:
        cases = [case for case in published(scorer.__name__) if "computed/p225" in case["ref"]]
        scores = score_cases(scorer, cases)
        for score, case in zip(scores, cases, strict=True):
            assert score == pytest.approx(case["expected"], abs=case["tolerance"]), case["deg"]

    @pytest.mark.parametrize(
        ("scorer", "in_noise", "clipped"),
        [(pesq_wb, 1.3832, 1.0521), (stoi, 0.99938, 0.57332), (visqol, 1.5229, 1.7010)],
    )
    def test_a_synthetic_voice_keeps_its_score(
        self, scorer: scorers.Scorer, in_noise: float, clipped: float
    ) -> None:
        clean = voice()
        scores = shared_pool().map(scorer, [clean, clean], [noisy(clean), np.clip(clean, -0.05, 0.05)])
        assert scores == pytest.approx([in_noise, clipped], abs=0.01)

    @pytest.mark.parametrize(("scorer", "ceiling"), [(pesq_wb, 4.6439), (stoi, 1.0), (visqol, 4.7)])
    def test_a_clip_against_itself_has_the_highest_score_and_noise_lowers_it(
        self, scorer: scorers.Scorer, ceiling: float
    ) -> None:
        clean = voice()
        degradeds = [clean, noisy(clean, 0.001), noisy(clean, 0.003), noisy(clean, 0.01)]
        scores = shared_pool().map(scorer, [clean] * 4, degradeds)
        assert scores[0] == pytest.approx(ceiling, abs=0.05)
        assert scores == sorted(scores, reverse=True)

    @pytest.mark.parametrize("scorer", ALL_SCORERS)
    def test_the_longer_clip_is_truncated_to_the_shorter(self, scorer: scorers.Scorer) -> None:
        clean, cut = voice(2.0), voice(2.0)[:24_000]
        scores = shared_pool().map(scorer, [cut, clean, cut], [noisy(cut), noisy(cut), noisy(clean)])
        assert scores[1:] == pytest.approx([scores[0]] * 2)


class TestUndefined:
    """Undefined scores are NaN."""

    @pytest.mark.parametrize("scorer", ALL_SCORERS)
    @pytest.mark.parametrize(
        "spoil", ["zero", "constant", "below 16 bits", "nan", "inf", "one nan", "0.1 s", "empty"]
    )
    def test_an_unusable_clip_on_either_side_gives_nan(self, scorer: scorers.Scorer, spoil: str) -> None:
        clean = voice()
        spoilt = {
            "zero": np.zeros_like(clean),
            "constant": np.full_like(clean, 0.3),
            "below 16 bits": clean * np.float32(1e-5),
            "nan": np.full_like(clean, np.nan),
            "inf": np.where(np.arange(len(clean)) == 9, np.inf, clean),
            "one nan": np.where(np.arange(len(clean)) == 9, np.nan, clean),
            "0.1 s": clean[:1_600],
            "empty": clean[:0],
        }[spoil]
        assert math.isnan(scorer(clean, spoilt))
        assert math.isnan(scorer(spoilt, clean))
        assert math.isnan(scorer(spoilt, spoilt))

    def test_a_clip_too_short_for_one_measure_gives_nan_for_that_measure_alone(self) -> None:
        clips = [noisy(np.zeros(round(seconds * 16_000), np.float32), 0.1) for seconds in (0.3, 0.6, 0.9)]
        defined = [[not math.isnan(score) for score in shared_pool().map(s, clips, clips)] for s in ALL_SCORERS]
        assert defined == [[True, True, True], [False, True, True], [False, False, True]]

    def test_stoi_of_too_few_frames_is_nan_without_a_warning(self, recwarn: pytest.WarningsRecorder) -> None:
        clip = noisy(np.zeros(4_800, np.float32), 0.1)
        assert math.isnan(stoi(clip, clip))
        assert not recwarn.list

    def test_pesq_without_utterances_is_nan(self) -> None:
        late = np.zeros(24_000, np.float32)
        late[-2_000:] = noisy(voice())[:2_000]
        assert math.isnan(pesq_wb(late, late))

    @pytest.mark.parametrize("scorer", ALL_SCORERS)
    def test_stereo_is_refused_with_its_shape(self, scorer: scorers.Scorer) -> None:
        with pytest.raises(ValueError, match=r"\(2, 16000\)"):
            scorer(np.ones((2, 16_000), np.float32), np.ones(16_000, np.float32))


class TestLattice:
    """ViSQOL never falls back to its polynomial."""

    @pytest.fixture
    def without_runtime(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Simulates an installation of visqol-python without `[lattice]`."""
        monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
        scorers._visqol_manager.cache_clear()
        yield
        scorers._visqol_manager.cache_clear()

    def test_the_lattice_is_installed(self) -> None:
        require_visqol_lattice()

    @pytest.mark.usefixtures("without_runtime")
    def test_a_missing_runtime_is_refused_when_the_metric_is_built(self) -> None:
        with pytest.raises(RuntimeError, match=r"lattice.*pip install") as raised:
            ViSQOL(sample_rate=16_000)
        assert "\n" not in str(raised.value)

    @pytest.mark.usefixtures("without_runtime")
    def test_a_missing_runtime_is_refused_by_the_scorer_itself(self) -> None:
        with pytest.raises(RuntimeError, match=r"lattice.*pip install"):
            visqol(voice(), voice())

    def test_a_missing_model_file_is_refused(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "visqol").mkdir()
        (tmp_path / "visqol" / "__init__.py").touch()
        for name in [name for name in sys.modules if name.split(".")[0] == "visqol"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(RuntimeError, match="tflite"):
            require_visqol_lattice()

    @pytest.mark.usefixtures("without_runtime")
    def test_other_metrics_do_not_need_the_lattice(self) -> None:
        assert STOI(sample_rate=16_000).scorer is stoi


class TestScorePool:
    """Workers keep the order, are reused, and survive signals; crashes and kills are handled."""

    def test_scores_keep_the_order_of_the_clips(self) -> None:
        ones = [np.ones(n, np.float32) for n in (300_000, 1, 200_000, 2, 100_000, 3)]
        assert shared_pool().map(np.dot, ones, ones) == [len(one) for one in ones]

    def test_workers_are_reused(self, small_pool: ScorePool) -> None:
        assert small_pool.worker_pids == []
        small_pool.map(stoi, [voice()], [voice()])
        first = small_pool.worker_pids
        small_pool.map(stoi, [voice()] * 3, [voice()] * 3)
        assert small_pool.worker_pids == first and len(first) == 1

    def test_warm_up_does_not_block(self, small_pool: ScorePool) -> None:
        (future,) = small_pool.warm_up()
        assert not future.done()

    def test_signals_of_slurm_and_ctrl_c_never_kill_a_worker_not_even_while_it_starts(
        self, small_pool: ScorePool
    ) -> None:
        future = small_pool.submit(stoi, voice(), voice())
        while not small_pool.worker_pids:
            time.sleep(1e-4)
        (worker,) = small_pool.worker_pids
        while not future.done():
            for sent in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
                os.kill(worker, sent)
            time.sleep(1e-3)
        assert future.result() == pytest.approx(1.0)
        assert small_pool.map(stoi, [voice()], [voice()]) == pytest.approx([1.0])
        assert small_pool.worker_pids == [worker]

    def test_the_parent_still_receives_sigusr1(self) -> None:
        received: list[int] = []
        before = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
        try:
            future = shared_pool().submit(stoi, voice(), voice())
            os.kill(os.getpid(), signal.SIGUSR1)
            assert future.result() == pytest.approx(1.0)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert received == [signal.SIGUSR1]

    def test_a_killed_worker_is_replaced_and_its_clip_scored(self, small_pool: ScorePool) -> None:
        small_pool.map(stoi, [voice()], [voice()])
        (killed,) = small_pool.worker_pids
        os.kill(killed, signal.SIGKILL)
        assert small_pool.map(stoi, [voice()], [voice()]) == pytest.approx([1.0])
        assert small_pool.worker_pids != [killed]

    def test_a_clip_that_crashes_the_c_code_is_nan_and_the_next_is_scored(self, small_pool: ScorePool) -> None:
        read_address_1: Any = ctypes.string_at  # what PESQ did with a clip of 60 utterances
        with pytest.warns(RuntimeWarning, match="SIGSEGV"):
            assert math.isnan(small_pool.submit(read_address_1, 1, 1).result())  # type: ignore[arg-type]
        assert small_pool.map(stoi, [voice()], [voice()]) == pytest.approx([1.0])

    def test_an_error_in_a_scorer_is_raised_in_the_parent_with_its_traceback(self, small_pool: ScorePool) -> None:
        with pytest.raises(RuntimeError, match=r"(?s)stoi failed in a worker.*\(2, 8\)"):
            small_pool.map(stoi, [np.ones((2, 8), np.float32)], [voice()])
        assert small_pool.map(stoi, [voice()], [voice()]) == pytest.approx([1.0])

    def test_unequal_numbers_of_clips_are_refused(self, small_pool: ScorePool) -> None:
        with pytest.raises(ValueError, match="2 references but 1"):
            small_pool.map(stoi, [voice(), voice()], [voice()])
        with pytest.raises(ValueError, match="num_workers is 0: expected at least 1"):
            ScorePool(num_workers=0)

    def test_close_kills_busy_workers_and_a_later_task_restarts_the_pool(self) -> None:
        pool = ScorePool(num_workers=1)
        queued = [pool.submit(visqol, voice(), voice()) for _ in range(20)]
        while not pool.worker_pids:
            time.sleep(1e-3)
        (worker,) = pool.worker_pids
        pool.close()
        assert not Path(f"/proc/{worker}").exists()
        assert all(future.done() for future in queued) and queued[-1].cancelled()
        assert pool.map(stoi, [voice()], [voice()]) == pytest.approx([1.0])
        pool.close()

    def test_a_forked_child_starts_its_own_workers(self) -> None:
        parents = shared_pool().worker_pids
        child = os.fork()
        if child == 0:  # whatever happens, the child must not return into pytest
            passed = False
            try:
                signal.alarm(20)
                score = shared_pool().map(stoi, [voice()], [voice()])[0]
                passed = score > 0.999 and not set(parents) & set(shared_pool().worker_pids)
                shared_pool().close()
            finally:
                os._exit(0 if passed else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert shared_pool().worker_pids == parents
        assert shared_pool().map(stoi, [voice()], [voice()]) == pytest.approx([1.0])

    def test_workers_do_not_import_torch(self) -> None:
        code = "import sys; from sf_lightning.metrics import scorers; import pesq, pystoi; "
        code += "scorers._visqol_manager(); print(*sys.modules)"
        path = os.pathsep.join(sys.path)
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        modules = run.stdout.split()
        assert "visqol" in modules
        assert not {"torch", "torchmetrics", "lightning"} & set(modules)


class TestMetrics:
    """The metrics as torchmetrics: means without NaN, in collections, after resets, over ranks."""

    @pytest.fixture
    def clips(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns four degraded clips and their references, both [4, N]; the second degraded clip is silent."""
        target = torch.from_numpy(np.stack([voice()] * 4))
        preds = torch.from_numpy(np.stack([noisy(voice(), level) for level in (0.01, 0, 0.1, 0.3)]))
        preds[1] = 0
        return preds, target

    def test_the_mean_leaves_nan_out_and_counts_it(self, clips: tuple[torch.Tensor, torch.Tensor]) -> None:
        preds, target = clips
        metric = STOI(sample_rate=16_000)
        metric.update(preds, target)
        expected = [stoi(target[i].numpy(), preds[i].numpy()) for i in range(4)]
        torch.testing.assert_close(metric.scores, torch.tensor(expected), equal_nan=True)
        assert metric.num_nan == 1 and metric.scores[1].isnan()
        assert metric.compute() == pytest.approx((expected[0] + expected[2] + expected[3]) / 3)
        assert metric.compute().shape == ()

    def test_the_mean_of_no_scores_is_nan(self) -> None:
        metric = STOI(sample_rate=16_000)
        metric.update(torch.zeros(3, 16_000), torch.zeros(3, 16_000))
        assert metric.compute().isnan() and metric.num_nan == 3

    def test_updates_accumulate_until_reset(self, clips: tuple[torch.Tensor, torch.Tensor]) -> None:
        metric = STOI(sample_rate=16_000)
        metric.update(*clips)
        metric.update([clips[0][0], clips[0][2][:20_000]], [clips[1][0], clips[1][2]])
        assert metric.scores.shape == (6,) and metric.scores[4] == metric.scores[0]
        metric.reset()
        assert metric.scores.shape == (0,) and metric.num_nan == 0
        metric.update(clips[0][:1], clips[1][:1])
        assert metric.scores.shape == (1,)
        assert metric(clips[0][2:3], clips[1][2:3]) < metric.compute()

    def test_a_collection_computes_each_metric(self, clips: tuple[torch.Tensor, torch.Tensor]) -> None:
        collection = MetricCollection([PESQWB(16_000), STOI(16_000), ViSQOL(16_000)], prefix="val/")
        collection.update(*clips)
        means = collection.compute()
        assert set(means) == {"val/PESQWB", "val/STOI", "val/ViSQOL"}
        assert 1 < means["val/PESQWB"] < 1.1 and 0.5 < means["val/STOI"] < 1

    def test_a_collection_does_not_merge_metrics_after_an_empty_batch(
        self, clips: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        # Two equal states after the first update make a compute group: PESQ would be reported as STOI.
        collection = MetricCollection([PESQWB(16_000), STOI(16_000)])
        collection.update(clips[0][:0], clips[1][:0])
        collection.update(clips[0][:1], clips[1][:1])
        computed = collection.compute()
        assert computed["PESQWB"] > 1 > computed["STOI"]

    def test_the_mean_is_over_all_ranks(self, clips: tuple[torch.Tensor, torch.Tensor]) -> None:
        def two_ranks(scores: torch.Tensor, group: Any) -> list[torch.Tensor]:
            return [scores, torch.tensor([0.5, float("nan")])]

        metric = STOI(16_000, dist_sync_fn=two_ranks, distributed_available_fn=lambda: True)
        metric.update(clips[0][:2], clips[1][:2])
        own = metric.scores[0]
        assert metric.compute() == pytest.approx((float(own) + 0.5) / 2)
        assert metric.scores.shape == (2,)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))])
    def test_a_copy_keeps_its_scores_and_accumulates_separately(
        self, copied: Callable[[PerceptualMetric], PerceptualMetric], clips: tuple[torch.Tensor, torch.Tensor]
    ) -> None:
        metric = STOI(16_000)
        metric.update(clips[0][:1], clips[1][:1])
        other = copied(metric)
        other.update(clips[0][2:], clips[1][2:])
        assert metric.scores.shape == (1,) and other.scores.shape == (3,)

    def test_bfloat16_with_gradients_is_accepted(self, clips: tuple[torch.Tensor, torch.Tensor]) -> None:
        metric = STOI(16_000)
        metric.update(clips[0].bfloat16().requires_grad_(), list(clips[1].bfloat16()))
        assert metric.num_nan == 1 and 0.5 < metric.compute() < 1

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    def test_clips_on_a_gpu_give_scores_on_a_gpu(self, clips: tuple[torch.Tensor, torch.Tensor]) -> None:
        metric = STOI(16_000).to("cuda")
        metric.update(clips[0].cuda(), clips[1].cuda())
        assert metric.scores.device.type == metric.compute().device.type == "cuda"

    @pytest.mark.parametrize("metric", [PESQWB, STOI, ViSQOL])
    def test_another_rate_is_refused_with_both_rates(self, metric: type[PerceptualMetric]) -> None:
        with pytest.raises(ValueError, match="got 24000 Hz, but is defined at 16000 Hz"):
            metric(sample_rate=24_000)

    def test_batches_of_wrong_shape_are_refused_with_their_shape(self) -> None:
        metric = STOI(16_000)
        with pytest.raises(ValueError, match="3 references but 2 degraded clips"):
            metric.update(torch.zeros(2, 16_000), torch.zeros(3, 16_000))
        with pytest.raises(ValueError, match=r"\(16000,\)"):
            metric.update(torch.zeros(16_000), torch.zeros(16_000))
        with pytest.raises(ValueError, match=r"\(1, 16000\)"):
            metric.update([torch.zeros(1, 16_000)], [torch.zeros(1, 16_000)])
