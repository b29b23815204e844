"""Sets that lie elsewhere: brought by a server or a command, kept in a cache that stays small, asked for again."""

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from sf_lightning.data.shards import ShardSet
from sf_lightning.data.store import Store
from tests.data.test_lanes import packs, same

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="WebDataset reads http through curl")


class Flaky(SimpleHTTPRequestHandler):
    """Serves a folder, but breaks off the first tar when it is asked for the first time."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Answers."""
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
        """Says nothing."""


@pytest.fixture
def server(shards: ShardSet) -> Iterator[str]:
    """The fixture's set on a web server of this machine."""
    Flaky.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Flaky, directory=str(shards.folder))) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sf-lightning"


def test_a_set_on_a_web_server_gives_the_packs_of_the_folder_and_is_brought_once(
    shards: ShardSet, server: str
) -> None:
    here, there = packs(shards, 10), packs(ShardSet(server), 10)  # more than an epoch
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    assert Flaky.asked.count("/shard-000000.tar") == 2  # broken off once, then whole
    assert Flaky.asked.count("/shard-000001.tar") == Flaky.asked.count("/shard-000001.json") == 1


def test_a_command_brings_a_set_too(shards: ShardSet) -> None:
    there = ShardSet(f"pipe:cat '{shards.folder}/{{}}'")
    assert all(same(a, b) for a, b in zip(packs(shards, 3), packs(there, 3), strict=True))


def test_the_cache_stays_below_its_size_and_keeps_what_was_used_last(shards: ShardSet, cache: Path) -> None:
    size = max(info.bytes for info in shards.manifest.shards)
    store = Store(f"pipe:cat '{shards.folder}/{{}}'", cache_gb=2.5 * size / 1e9)
    names = [info.name for info in shards.manifest.shards]
    for name in (names[0], names[1], names[0], names[2], names[0], names[3]):
        store.path(name)
        assert sum(path.stat().st_size for path in cache.rglob("*.tar")) <= 3.5 * size
    assert names[0] in {path.name for path in cache.rglob("*.tar")}
    assert names[1] not in {path.name for path in cache.rglob("*.tar")}


def test_what_cannot_be_had_is_asked_for_again_and_then_named(shards: ShardSet) -> None:
    store = Store("pipe:false {}", attempts=3, delay=0.0)
    with pytest.raises(FileNotFoundError, match=r"pipe:false manifest.json could not be read in 3 attempts"):
        store.path("manifest.json")
    with pytest.raises(ValueError, match=r"wanted \{\} in the command"):
        Store("pipe:cat set/manifest.json")
