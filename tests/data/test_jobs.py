"""Jobs in processes: progress is visible while they run, and their findings are printed in order."""

import functools
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sf_lightning.data import jobs
from sf_lightning.data.jobs import ProgressCounter, progress_line, run_jobs


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prints a line at every update, not every minute."""
    monkeypatch.setattr(jobs, "SECONDS_BETWEEN_UPDATES", 0.01)
    monkeypatch.setattr(jobs, "SECONDS_BETWEEN_LINES", 0.0)


def wait_for(seen: Callable[[], bool]) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + 60
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_progress_within_one_long_job_is_logged(quick: None, capsys: pytest.CaptureFixture) -> None:
    def do(item: int, counter: ProgressCounter) -> list[str]:
        for share in (25, 50):
            counter.add(processed=250, seconds=3600.0)
            log = ""

            def is_logged(share: int = share) -> bool:
                nonlocal log
                log += capsys.readouterr().out
                return f"going: {share}% of 1.0 kB, {share / 25:.1f} h of speech" in log

            wait_for(is_logged)
            assert re.search(r"\d+ x real time, 0 min left", log)
        return []

    run_jobs(do, [1], 1000, 1, "going")


def test_reused_work_does_not_shorten_the_estimated_time() -> None:
    counter = ProgressCounter()
    assert progress_line(counter, 1000, 1.0) == "0% of 1.0 kB, 0.0 h of speech, 0 x real time, time left unknown"
    counter.add(reused=900)
    assert "90% of 1.0 kB" in progress_line(counter, 1000, 1.0) and "unknown" in progress_line(counter, 1000, 1.0)
    counter.add(processed=10, seconds=60.0)
    assert progress_line(counter, 1000, 3600.0).endswith("9.0 h left")


def job_until_seen(item: int, counter: ProgressCounter, folder: Path) -> list[str]:
    """A job that ends when the parent has seen its progress."""
    counter.add(processed=10)
    (folder / str(item)).touch()
    wait_for(lambda: (folder / "seen").exists())
    return [f"[{item}]"] * (item % 3)


@pytest.mark.slow
def test_processes_share_the_counter_and_print_findings_in_order(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    output: list[str] = []

    def listen(counter: ProgressCounter, total: int, elapsed: float) -> str:
        output.append(progress_line(counter, total, elapsed))
        if "40% of 50 bytes" in output[-1]:  # two processes, each with a first job
            (tmp_path / "seen").touch()
        return output[-1]

    monkeypatch.setattr(jobs, "progress_line", listen)
    found = run_jobs(functools.partial(job_until_seen, folder=tmp_path), range(5), 50, 2, "going")
    assert found == ["[1]", "[2]", "[2]", "[4]"]
    assert re.findall(r"^\[\d\]$", capsys.readouterr().out, re.MULTILINE) == found


def die(item: int, counter: ProgressCounter) -> list[str]:
    """A job whose process is killed, as for lack of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def test_a_killed_process_ends_the_run_with_a_hint() -> None:
    with pytest.raises(RuntimeError, match=r"one of the 2 processes was killed, .* lower --processes"):
        run_jobs(die, range(3), 50, 2, "going")
