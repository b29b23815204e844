"""Folders and JSON of others: links are refused wherever they are, and values that could not be written again."""

import os
import socket
from pathlib import Path

import pytest

from sf_lightning.files.foreign import damage_reported, require_no_links, strict_json


@pytest.mark.parametrize("place", ["x", "a/x", "a/b/x"])
@pytest.mark.parametrize("kind", ["file", "folder", "dangling", "pipe", "socket"])
def test_links_pipes_and_sockets_at_any_depth_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, kind: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    folder = tmp_path / "foreign"
    (folder / "a" / "b").mkdir(parents=True)
    require_no_links(folder)
    path = folder / place
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        monkeypatch.chdir(path.parent)  # paths of sockets have at most 107 bytes
        socket.socket(socket.AF_UNIX).bind("x")
    else:
        path.symlink_to(
            {"file": tmp_path / "mine" / "file", "folder": tmp_path / "mine"}.get(kind, tmp_path / "no")
        )
    name = "neither a file nor a folder" if kind in ("pipe", "socket") else "a symbolic link"
    with pytest.raises(ValueError, match=f"{path} is {name}"):
        require_no_links(folder)
    if place != "x":
        require_no_links(folder, ("a",))


def test_the_folder_itself_and_its_parents_may_be_links_or_missing(tmp_path: Path) -> None:
    (tmp_path / "disk" / "mine").mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    (tmp_path / "eval").symlink_to(tmp_path / "home" / "mine")
    for folder in (tmp_path / "home" / "mine", tmp_path / "eval", tmp_path / "missing"):
        require_no_links(folder)
    (tmp_path / "disk" / "mine" / "x").symlink_to("y")
    with pytest.raises(ValueError, match="symbolic link"):
        require_no_links(tmp_path / "eval")
    require_no_links(tmp_path / "eval", linked=("x",))
    (tmp_path / "disk" / "mine" / "a").mkdir()
    (tmp_path / "disk" / "mine" / "a" / "x").symlink_to("y")
    with pytest.raises(ValueError, match="a/x is a symbolic link"):
        require_no_links(tmp_path / "eval", linked=("x",))


@pytest.mark.parametrize(
    "content",
    [b"[NaN]", b"[1e999]", b'["\\ud800"]', b'{"\\udfff": 1}', b"[" * 100_000, b"9" * 5000, b'["\xff"]', b"", b"{"],
)
def test_json_that_could_not_be_written_again_is_damage(content: bytes) -> None:
    with (
        pytest.raises(ValueError, match=r"^a file is damaged \(.{3,200}\): delete it$"),
        damage_reported("a file", "delete it"),
    ):
        strict_json(content)


def test_json_of_editors_is_read() -> None:
    assert strict_json(b'\xef\xbb\xbf{"a":\r\n "\\ud83d\\ude00 \xc3\xa9"}\r\n') == {"a": "\U0001f600 é"}
