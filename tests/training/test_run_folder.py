"""The folder of a run: its table after damage, its lock, and links in it."""

import csv
import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from sf_lightning.training import run_lock as locks
from sf_lightning.training.compile_cache import CACHE_DIR, set_compile_cache
from sf_lightning.training.loggers import ResumableCSVLogger
from sf_lightning.training.run_lock import LOCK, run_lock
from sf_lightning.training.saving import newest_checkpoint, remove_checkpoint

ROWS = [{"train/loss": 0.5 / (step + 1), "gradient": 1.25e-7} for step in range(6)]


def write_table(folder: Path, steps: range) -> Path:
    """Logs rows of some steps and returns the path of the table."""
    logger = ResumableCSVLogger(str(folder))
    for step in steps:
        logger.log_metrics(ROWS[step], step)
    return folder / "csv" / "metrics.csv"


def read_steps(path: Path) -> list[int]:
    """Returns the steps of a table, whose rows must be those that were logged."""
    with path.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    for row in rows:
        assert {name: float(row[name]) for name in ROWS[0]} == ROWS[int(row["step"])]
    return [int(row["step"]) for row in rows]


def call_in_child(function: Callable[[], str]) -> str:
    """Returns what a function returns in a forked process."""
    receiver, sender = get_context("fork").Pipe()
    process = get_context("fork").Process(target=lambda: sender.send(function()))
    process.start()
    result = receiver.recv()
    process.join()
    return result


def damaged_tables() -> list[tuple[str, object, list[int]]]:
    """Returns kinds of damage to a table of steps 0 to 3, and the steps whose rows are left."""

    def last(content: bytes) -> bytes:
        return content.splitlines(keepends=True)[-1]

    cuts = [
        (f"cut {k} bytes into the last row", lambda c, k=k: c[: len(c) - len(last(c)) + k], [0, 1, 2])
        for k in (0, 1, 7, 9, 12, 16)
    ]
    return [
        *cuts,
        ("without the last newline", lambda c: c[:-2], [0, 1, 2]),
        ("half of the last newline", lambda c: c[:-1], [0, 1, 2, 3]),
        ("zero bytes for the last row", lambda c: c[: -len(last(c))] + bytes(len(last(c))), [0, 1, 2]),
        ("zero bytes at the end", lambda c: c + bytes(4096), [0, 1, 2, 3]),
        ("zero bytes alone", lambda c: bytes(len(c)), []),
        ("empty", lambda c: b"", []),
        ("header cut", lambda c: c[:5], []),
        ("header garbled", lambda c: b"\0" * 4 + c[4:], []),
        ("half a row before a whole one", lambda c: c[: -len(last(c)) + 12] + last(c), [0, 1, 2]),
        ("a cell too many", lambda c: c.replace(b",3,0.125", b",3,0.125,4"), [0, 1, 2]),
        ("no number", lambda c: c.replace(b",3,0.125", b",3,0.12\xff"), [0, 1, 2]),
        ("quotes that do not end", lambda c: c.replace(b",3,0.125", b',3,"0.125'), [0, 1, 2, 3]),
        ("a cell of a megabyte", lambda c: c + b"1" * 1_000_000 + b",1,1\n", [0, 1, 2, 3]),
        ("line feeds", lambda c: c.replace(b"\r\n", b"\n"), [0, 1, 2, 3]),
        ("blank lines", lambda c: c + b"\r\n\r\n", [0, 1, 2, 3]),
    ]


@pytest.mark.parametrize(("name", "damage", "left"), damaged_tables())
@pytest.mark.parametrize("resumed_at", [2, 4])
def test_a_damaged_table_keeps_its_whole_rows_and_continues_as_its_twin(
    tmp_path: Path, name: str, damage: object, left: list[int], resumed_at: int
) -> None:
    table = write_table(tmp_path / "run", range(4))
    table.write_bytes(damage(table.read_bytes()))  # type: ignore[operator]
    logger = ResumableCSVLogger(str(tmp_path / "run"))
    logger.drop_rows(resumed_at, validated=True)
    for step in range(resumed_at, 6):
        logger.log_metrics(ROWS[step], step)
    assert read_steps(table) == [step for step in left if step < resumed_at] + [*range(resumed_at, 6)]
    if left[:2] == [0, 1] and resumed_at == 2:
        assert table.read_bytes() == write_table(tmp_path / "twin", range(6)).read_bytes()


def test_a_logger_that_drops_no_rows_does_not_continue_half_a_row(tmp_path: Path) -> None:
    table = write_table(tmp_path, range(4))
    table.write_bytes(table.read_bytes()[:-9])
    assert read_steps(write_table(tmp_path, range(4, 6))) == [0, 1, 2, 4, 5]


def test_a_row_that_does_not_fit_on_the_disk_names_the_table() -> None:
    logger = ResumableCSVLogger("/dev")
    logger._columns = ["step"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumableCSVLogger, "_path", Path("/dev/full"))
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            logger.log_metrics({}, 1)


def test_a_folder_in_use_is_refused_with_the_process_that_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with run_lock(tmp_path / "run"):

        def second() -> str:
            try:
                with run_lock(tmp_path / "run"):
                    return "locked"
            except BlockingIOError as error:
                return str(error)

        refusal = call_in_child(second)
    assert f"run is in use by process {os.getpid()} on {os.uname().nodename}: wait until it ends" in refusal
    assert call_in_child(second) == "locked"


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    def die() -> None:
        with run_lock(tmp_path):
            if os.fork() == 0:  # as a data loader's process, which outlives it
                os.execlp("sleep", "sleep", "5")
            os.kill(os.getpid(), 9)

    if (child := os.fork()) == 0:
        die()
    os.waitpid(child, 0)
    assert (tmp_path / LOCK).read_text().startswith('{"host"')
    with run_lock(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / LOCK).read_text()


def test_a_requeued_job_waits_for_its_earlier_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    ready, holding = os.pipe()
    if (child := os.fork()) == 0:
        with run_lock(tmp_path):
            os.write(holding, b"x")
            locks.time.sleep(0.3)
        os._exit(0)
    os.read(ready, 1)
    with run_lock(tmp_path):
        pass
    os.waitpid(child, 0)


@pytest.mark.parametrize("content", ["", "no json", "[1]", "{"])
def test_a_damaged_lock_file_locks_as_well(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with run_lock(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / LOCK).read_text()


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match=LOCK), run_lock(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_the_newest_checkpoint_is_that_of_the_highest_step_whatever_the_clock_did(tmp_path: Path) -> None:
    for age, step in enumerate((10, 5)):
        folder = tmp_path / f"last-{step:07d}.ckpt"
        folder.mkdir()
        (folder / "meta.pt").touch()
        os.utime(folder / "meta.pt", (2e9 + 3600 * age, 2e9 + 3600 * age))
    assert newest_checkpoint(tmp_path) == tmp_path / "last-0000010.ckpt"
    torch.save({"global_step": 7}, tmp_path / "last.ckpt")
    os.utime(tmp_path / "last.ckpt", (3e9, 3e9))
    assert newest_checkpoint(tmp_path) == tmp_path / "last-0000010.ckpt"
    torch.save({"global_step": 12}, tmp_path / "last.ckpt")
    os.utime(tmp_path / "last.ckpt", (1e9, 1e9))
    assert newest_checkpoint(tmp_path) == tmp_path / "last.ckpt"
    (tmp_path / "last.ckpt").write_bytes(b"damaged")
    assert newest_checkpoint(tmp_path) == tmp_path / "last-0000010.ckpt"
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "last.ckpt").write_bytes(b"damaged")  # reported where it is read
    assert newest_checkpoint(tmp_path / "alone") == tmp_path / "alone" / "last.ckpt"


def test_a_checkpoint_that_is_a_link_is_deleted_and_not_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "meta.pt").touch()
    for target in (tmp_path / "mine", tmp_path / "mine" / "meta.pt"):
        (tmp_path / "last-0000001.ckpt").symlink_to(target)
        remove_checkpoint(tmp_path / "last-0000001.ckpt")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "meta.pt"]


def test_compiled_code_is_kept_in_a_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for cache in ("", str(tmp_path / "xdg")):
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        monkeypatch.delenv(CACHE_DIR, raising=False)
        set_compile_cache()
        folder = Path(os.environ[CACHE_DIR]).parent
        assert folder == Path(cache or tmp_path / ".cache") / "sf-lightning"
        assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv(CACHE_DIR, "/given")
    set_compile_cache()
    assert os.environ[CACHE_DIR] == "/given"


@pytest.mark.parametrize("kind", ["foreign", "writable", "link", "file"])
def test_a_cache_of_compiled_code_that_others_can_change_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(CACHE_DIR, raising=False)
    folder = tmp_path / "sf-lightning"
    if kind == "link":
        folder.symlink_to(tmp_path)
    elif kind == "file":
        folder.touch()
    else:
        folder.mkdir(mode=0o755)
    if kind == "writable":
        folder.chmod(0o777)
    if kind == "foreign":
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(OSError, match="sf-lightning"):
        set_compile_cache()
    assert CACHE_DIR not in os.environ
