"""Work in processes: how far it is can be seen while it goes on, and what is said comes in order."""

import functools
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sf_lightning.data import jobs as working
from sf_lightning.data.jobs import ProgressCounter, progress_line, work


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines come at once, not every minute."""
    monkeypatch.setattr(working, "SECONDS_BETWEEN_UPDATES", 0.01)
    monkeypatch.setattr(working, "SECONDS_BETWEEN_LINES", 0.0)


def wait_for(seen: Callable[[], bool]) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + 60
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_log_of_one_long_job_shows_it_move(quick: None, capsys: pytest.CaptureFixture) -> None:
    def do(item: int, counter: ProgressCounter) -> list[str]:
        for share in (25, 50):
            counter.add(made=250, seconds=3600.0)
            log = ""

            def is_said(share: int = share) -> bool:
                nonlocal log
                log += capsys.readouterr().out
                return f"going: {share}% of 1.0 kB, {share / 25:.1f} h of speech" in log

            wait_for(is_said)
            assert re.search(r"\d+ x real time, 0 min left", log)
        return []

    work(do, [1], 1000, 1, "going")


def test_a_job_that_is_done_already_does_not_make_the_rest_look_quick() -> None:
    counter = ProgressCounter()
    assert progress_line(counter, 1000, 1.0) == "0% of 1.0 kB, 0.0 h of speech, 0 x real time, time left unknown"
    counter.add(reused=900)
    assert "90% of 1.0 kB" in progress_line(counter, 1000, 1.0) and "unknown" in progress_line(counter, 1000, 1.0)
    counter.add(made=10, seconds=60.0)
    assert progress_line(counter, 1000, 3600.0).endswith("9.0 h left")


def say(item: int, counter: ProgressCounter, folder: Path) -> list[str]:
    """A job that ends when the parent has seen how far it is."""
    counter.add(made=10)
    (folder / str(item)).touch()
    wait_for(lambda: (folder / "seen").exists())
    return [f"[{item}]"] * (item % 3)


@pytest.mark.slow
def test_processes_count_together_and_speak_in_order(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def listen(counter: ProgressCounter, total: int, elapsed: float) -> str:
        said.append(progress_line(counter, total, elapsed))
        if "40% of 50 bytes" in said[-1]:  # two processes, each with a first job
            (tmp_path / "seen").touch()
        return said[-1]

    monkeypatch.setattr(working, "progress_line", listen)
    found = work(functools.partial(say, folder=tmp_path), range(5), 50, 2, "going")
    assert found == ["[1]", "[2]", "[2]", "[4]"]
    assert re.findall(r"^\[\d\]$", capsys.readouterr().out, re.MULTILINE) == found


def die(item: int, counter: ProgressCounter) -> list[str]:
    """A job that uses up the memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def test_a_process_that_is_killed_ends_the_work_with_a_hint() -> None:
    with pytest.raises(RuntimeError, match=r"one of the 2 processes was killed, .* lower --processes"):
        work(die, range(3), 50, 2, "going")
