"""Where the files of a shard set lie: a folder, a web server, or whatever a command brings.

Files that come from elsewhere are kept in a cache of bounded size, so that a shard is brought once while it is
needed. Knows nothing of what is in them.
"""

import hashlib
import io
import logging
import os
import secrets
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from webdataset.cache import LRUCleanup
from webdataset.gopen import gopen

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """The files of a set.

    Args:
        place: A folder; or a URL that names are put behind (`https://host/set`); or a command that writes a
            file to its output, `{}` standing for the name (`pipe:aws s3 cp s3://bucket/set/{} -`).
        cache_gb: Size in GB of the cache (`$XDG_CACHE_HOME/sf-lightning`) for what is brought from elsewhere;
            beyond it what was used longest ago is deleted.
        attempts: How often a file is asked for before giving up.
        delay: Seconds before the second attempt; doubled before each further one.
        patience: Seconds without a byte after which a web server is given up.

    Raises:
        ValueError: if a command has no place for the name.
    """

    place: str
    cache_gb: float = 50.0
    attempts: int = 5
    delay: float = 1.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        if self.place.startswith("pipe:") and "{}" not in self.place:
            raise ValueError(f"{self.place}: wanted {{}} in the command, where the name of a file goes")

    @property
    def is_remote(self) -> bool:
        """Whether files have to be brought."""
        return self.place.startswith("pipe:") or "://" in self.place

    @property
    def cache(self) -> Path:
        """The folder of the cache."""
        return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "sf-lightning"

    def read(self, name: str) -> bytes:
        """Returns a small file whole, as it is now: it is not cached.

        Raises:
            FileNotFoundError: if it cannot be had.
        """
        if not self.is_remote:
            return Path(self.place, name).read_bytes()
        self._bring(name, into := io.BytesIO(), None)
        return into.getvalue()

    def open(self, name: str, size: int | None = None, version: str = "") -> io.BufferedIOBase:
        """Opens a file, which is brought first where it must be.

        Args:
            name: Of the file.
            size: Its bytes, if they are known: a file of another size is brought again.
            version: Of the set: what was cached of another one is not taken.

        Raises:
            FileNotFoundError: if it cannot be had.
        """
        if not self.is_remote:
            return Path(self.place, name).open("rb")
        path = self.cache / hashlib.sha256(f"{self.place} {version}".encode()).hexdigest()[:16] / name
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return self._cached(name, path, size)
        if size not in (None, os.fstat(file.fileno()).st_size):
            file.close()
            return self._cached(name, path, size)
        os.utime(file.fileno())  # used just now: what is deleted is what was used longest ago
        return file

    def _cached(self, name: str, path: Path, size: int | None) -> io.BufferedIOBase:
        """Brings a file into the cache; open already, for another process may delete it the next moment."""
        path.parent.mkdir(parents=True, exist_ok=True)
        LRUCleanup(str(self.cache), int(self.cache_gb * 1e9), interval=None).cleanup()
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")  # the cache may be shared by nodes
        file = fresh.open("w+b")
        try:
            self._bring(name, file, size)
            fresh.replace(path)
        except BaseException:
            file.close()
            fresh.unlink(missing_ok=True)
            raise
        file.seek(0)
        return file

    def _bring(self, name: str, into: io.BufferedIOBase, size: int | None) -> None:
        url, said = self._url(name), self._place_of(name)
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.delay * 2 ** (attempt - 1))
            into.seek(0)
            into.truncate()
            try:
                with gopen(url) as stream:
                    shutil.copyfileobj(stream, into, 1 << 20)
                if (came := into.tell()) == 0 or size not in (None, came):
                    raise OSError(f"{came} bytes came, wanted {'some' if size is None else size}")
                into.flush()
                return
            except OSError as error:
                log.warning("%s, attempt %d of %d: %s", said, attempt + 1, self.attempts, error)
        raise FileNotFoundError(
            f"{said} could not be read in {self.attempts} attempts; see the log for each of them"
        )

    def _place_of(self, name: str) -> str:
        """A file's URL, or the command that brings it."""
        if self.place.startswith("pipe:"):
            return self.place.replace("{}", shlex.quote(name))
        return f"{self.place.rstrip('/')}/{quote(name)}"

    def _url(self, name: str) -> str:
        """What WebDataset is asked for."""
        url = self._place_of(name)
        if not url.startswith(("http://", "https://")):
            return url
        # WebDataset's own curl waits for ever on a server that goes silent.
        limits = f"--connect-timeout {self.patience:g} --speed-limit 1 --speed-time {self.patience:g}"
        return f"pipe:curl -sSfL {limits} {shlex.quote(url)}"
