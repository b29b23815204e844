"""Atomic writes, digests, format numbers and tables."""

import csv
import io
import math
import os
from pathlib import Path

import pytest

from sf_lightning.files import atomic
from sf_lightning.files.atomic import (
    atomic_folder,
    atomic_path,
    open_no_link,
    remove_leftovers,
    rename_synced,
    temporary_path,
    write_atomically,
)
from sf_lightning.files.digest import file_digest
from sf_lightning.files.formats import require_format
from sf_lightning.files.tables import markdown_table, pareto_front, read_metrics, write_csv


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "é old", sync=sync)
    write_atomically(path, b"new", sync=sync)
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        assert temporary.parent == tmp_path and temporary.name.startswith(".") and temporary.suffix == ".json"
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_two_writers_of_one_file_use_two_temporary_paths(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic_path(path) as first, atomic_path(path) as second:
        first.write_text("1"), second.write_text("2")
    assert path.read_text() == "1"


def test_a_link_is_replaced_and_a_file_elsewhere_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, folder = tmp_path / "home", tmp_path / "folder"
    home.mkdir(), folder.mkdir()
    (home / "mine").write_text("mine")
    (folder / "a").symlink_to(home / "mine")
    write_atomically(folder / "a", "new")
    assert (folder / "a").read_text() == "new" and not (folder / "a").is_symlink()
    for target in (home / "mine", home / "missing"):  # a temporary name that somebody has guessed
        (folder / f".guessed.{target.name}").symlink_to(target)
        monkeypatch.setattr(atomic, "temporary_path", lambda path: path.with_name(f".guessed.{path.name}"))
        with pytest.raises(FileExistsError) as raised:
            write_atomically(folder / target.name, "new")
        assert raised.value.filename == str(folder / target.name)
    assert [path.read_text() for path in home.iterdir()] == ["mine"]


def test_a_file_to_append_to_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="link"), open(tmp_path / "link", "a", opener=open_no_link):
        pass
    with open(tmp_path / "new", "a", opener=open_no_link) as file:
        file.write("x")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["new"]


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    temporary_path(tmp_path / "last.ckpt").touch()
    temporary_path(tmp_path / "last-1.ckpt").mkdir()
    temporary_path(tmp_path / "last-2.ckpt").symlink_to(tmp_path / "elsewhere")
    other = temporary_path(tmp_path / "summary.md")
    other.touch()
    (tmp_path / ".hidden.last.ckpt").touch()
    remove_leftovers(tmp_path, "last*.ckpt")
    remove_leftovers(tmp_path / "missing")
    assert set(os.listdir(tmp_path)) == {other.name, ".hidden.last.ckpt", "elsewhere"}
    assert os.listdir(tmp_path / "elsewhere") == ["kept"]


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077])
def test_a_file_has_the_access_rights_of_new_files(tmp_path: Path, mask: int) -> None:
    def write_privately(path: Path) -> None:
        path.unlink()
        os.close(os.open(path, os.O_CREAT, 0o600))  # as safetensors does

    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "a", "x")
        with atomic_path(tmp_path / "b", sync=True) as temporary:
            write_privately(temporary)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask}


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").write_text(name)
    rename_synced(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "inside").read_text() == "new" and os.listdir(tmp_path) == ["old"]


def test_a_new_folder_is_whole_readable_and_replaces_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "out"
    with pytest.raises(OSError, match="full"), atomic_folder(folder) as inner:
        (inner / "a").write_text("a")
        raise OSError("full")
    assert os.listdir(folder.parent) == []
    mask = os.umask(0o027)
    try:
        with atomic_folder(folder) as inner:
            os.close(os.open(inner / "a", os.O_CREAT, 0o600))
    finally:
        os.umask(mask)
    assert (folder / "a").stat().st_mode & 0o777 == 0o640 and os.listdir(folder.parent) == ["out"]
    with pytest.raises(FileExistsError, match="out exists already"), atomic_folder(folder):
        pass


def test_a_folder_that_appears_while_another_is_filled_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(FileExistsError), atomic_folder(folder):
        folder.mkdir()
    assert os.listdir(tmp_path) == ["out"]


def test_a_synced_write_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync = atomic._sync
    monkeypatch.setattr(atomic, "_sync", lambda path: (order.append(path.name), sync(path)))
    with atomic_path(tmp_path / "a", sync=True) as temporary:
        temporary.write_text("x")
    assert order == [temporary.name, tmp_path.name]


def test_a_digest_is_the_same_for_a_path_and_an_open_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert file_digest(tmp_path / "a") == file_digest(io.BytesIO()) == empty
    assert file_digest(tmp_path / "a", 8) == empty[:8]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (4, "set has format 4, sf-lightning .* reads up to 3: install a newer version"),
        (1, "set has format 1, sf-lightning .* reads from 2 on: build the set again"),
        (0, "set has 0 as its format: expected an integer from 1 to 3"),
        ("2", "set has '2' as its format"),
        (True, "set has True as its format"),
        (None, "set has None as its format"),
    ],
)
def test_a_format_that_is_not_read_is_refused_with_both_numbers(found: object, message: str) -> None:
    require_format("set", 2, newest=3, oldest=2, remedy="build the set again")
    with pytest.raises(ValueError, match=message):
        require_format("set", found, newest=3, oldest=2, remedy="build the set again")


def test_a_table_of_names_and_values_has_a_blank_header() -> None:
    assert markdown_table(None, [("mel", 80)]) == "| | |\n| --- | --- |\n| mel | 80 |"


def test_an_unknown_value_is_an_empty_cell(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["clip", "stoi"], [["é,1", None], ["b", 0.5]])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert [*csv.reader(file)] == [["clip", "stoi"], ["é,1", ""], ["b", "0.5"]]


def test_metrics_are_read_without_text_values_and_the_unfinished_last_row(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "metrics.csv").write_text("step,val/loss,note\n1,,x\n2,nan,\n3,0.25,\n4,0.")
    first, second, third = read_metrics(tmp_path)
    assert (first, third) == ({"step": 1}, {"step": 3, "val/loss": 0.25})
    assert second["step"] == 2 and math.isnan(second["val/loss"])


def test_a_point_at_the_cost_of_a_better_one_or_without_a_score_is_not_on_the_front() -> None:
    points = [(1, 2.0), (1, 3.0), (2, 3.0), (3, math.nan), (4, 4.0)]
    assert pareto_front(points, cost=lambda p: p[0], gain=lambda p: p[1]) == [(1, 3.0), (4, 4.0)]
