"""Remote sets: downloads from a server or through a command, retries, and the cache."""

import shutil
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from sf_lightning.data.build import build
from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import find_parts
from sf_lightning.data.shards import ShardSet
from sf_lightning.data.store import Store
from tests.toys.shards import packs_equal, set_packs, tokenizer_beside

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="WebDataset reads http through curl")


class Flaky(SimpleHTTPRequestHandler):
    """Serves a folder, but aborts the first download of the first tar."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Sends a file, or half of it."""
        Flaky.asked.append(self.path)
        path = Path(self.translate_path(self.path))
        if path.name == "shard-000000.tar" and Flaky.asked.count(self.path) == 1:
            data = path.read_bytes()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None:
        """Logs nothing."""


@pytest.fixture
def server(shards: ShardSet) -> Iterator[str]:
    """Serves the set of the fixture on a local web server."""
    Flaky.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Flaky, directory=str(shards.folder))) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Uses a temporary cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sf-lightning"


def test_a_set_on_a_web_server_gives_the_same_packs_and_is_downloaded_once(shards: ShardSet, server: str) -> None:
    here, there = (
        set_packs(shards, 10),
        set_packs(ShardSet(server), 10),
    )  # more than an epoch
    assert all(packs_equal(a, b) for a, b in zip(here, there, strict=True))
    assert Flaky.asked.count("/shard-000000.tar") == 2  # aborted once, then complete
    assert Flaky.asked.count("/shard-000001.tar") == Flaky.asked.count("/shard-000001.json") == 1


def test_a_set_behind_a_command_gives_the_same_packs(shards: ShardSet) -> None:
    there = ShardSet(f"pipe:cat '{shards.folder}/{{}}'")
    assert all(packs_equal(a, b) for a, b in zip(set_packs(shards, 3), set_packs(there, 3), strict=True))


def test_the_cache_stays_below_its_size_and_keeps_the_last_used_files(shards: ShardSet, cache: Path) -> None:
    size = max(info.bytes for info in shards.manifest.shards)
    store = Store(f"pipe:cat '{shards.folder}/{{}}'", cache_gb=2.5 * size / 1e9)
    names = [info.name for info in shards.manifest.shards]
    for name in (names[0], names[1], names[0], names[2], names[0], names[3]):
        store.open(name).close()
        assert sum(path.stat().st_size for path in cache.rglob("*.tar")) <= 3.5 * size
    assert names[0] in {path.name for path in cache.rglob("*.tar")}
    assert names[1] not in {path.name for path in cache.rglob("*.tar")}


def test_cached_files_of_an_older_build_are_not_used(shards: ShardSet, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(shards.folder, place)
    before = set_packs(ShardSet(f"pipe:cat '{place}/{{}}'"), 3)
    assert packs_equal(before[0], set_packs(shards, 1)[0])
    shutil.rmtree(place)
    parts = find_parts(Path(shards.folder).parent / "audio", 5)[1:]
    build(parts, place, BuildConfig(tokenizer_beside(shards), shard_samples=5))
    after, wanted = (
        set_packs(ShardSet(f"pipe:cat '{place}/{{}}'"), 3),
        set_packs(ShardSet(place), 3),
    )
    assert all(packs_equal(a, b) for a, b in zip(after, wanted, strict=True)) and not packs_equal(
        before[0], after[0]
    )


def test_an_open_file_stays_readable_when_the_cache_deletes_it(shards: ShardSet, cache: Path) -> None:
    store = Store(f"pipe:cat '{shards.folder}/{{}}'", cache_gb=0.0)
    with store.open("shard-000000.tar") as file, store.open("shard-000001.tar"):
        assert "shard-000000.tar" not in {path.name for path in cache.rglob("*")}
        assert file.read() == (Path(shards.folder) / "shard-000000.tar").read_bytes()
    there = ShardSet(f"pipe:cat '{shards.folder}/{{}}'", cache_gb=0.0)
    assert all(packs_equal(a, b) for a, b in zip(set_packs(shards, 8), set_packs(there, 8), strict=True))


def test_a_download_from_a_stalled_server_is_aborted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts the connection and sends nothing
        store = Store(f"http://127.0.0.1:{silent.getsockname()[1]}", attempts=2, delay=0.0, patience=1)
        with pytest.raises(FileNotFoundError, match="could not be read in 2 attempts"):
            store.read("manifest.json", 1000)


def test_a_failed_download_is_repeated_and_then_reported(shards: ShardSet) -> None:
    store = Store("pipe:false {}", attempts=3, delay=0.0)
    with pytest.raises(FileNotFoundError, match=r"pipe:false manifest.json could not be read in 3 attempts"):
        store.read("manifest.json", 1000)
    with pytest.raises(ValueError, match=r"expected \{\} in the command"):
        Store("pipe:cat set/manifest.json")


def test_file_names_are_quoted_for_the_shell_and_the_server(shards: ShardSet, tmp_path: Path, server: str) -> None:
    odd = "a b; touch gone #?%.tar"
    (tmp_path / odd).write_bytes(b"here")
    assert Store(f"pipe:cat {tmp_path}/{{}}").read(odd, 1000) == b"here"
    assert not list(tmp_path.glob("gone*"))
    with pytest.raises(FileNotFoundError, match=rf"^{server}/a%23b%3F.json could not be read in 1 attempts"):
        Store(server, attempts=1).read("a#b?.json", 1000)
    assert Flaky.asked == ["/a%23b%3F.json"]


def test_a_shard_missing_on_a_server_is_reported(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    shutil.copytree(shards.folder, place)
    there = ShardSet(f"pipe:cat '{place}/{{}}'")
    assert there.samples == 23
    (place / "shard-000003.tar").unlink()
    monkeypatch.setattr(Store, "delay", 0.0)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(FileNotFoundError, match=r"shard-000003.tar' could not be read in 5 attempts"):
        set_packs(there, 10)
