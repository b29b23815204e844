"""Access to the files of a shard set: in a folder, on a web server, or through a command.

Remote files are kept in a cache of bounded size, so that a shard is downloaded once while it is needed. Independent
of the content of the files.
"""

import io
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from webdataset.cache import LRUCleanup
from webdataset.gopen import gopen

from sf_lightning.files.atomic import atomic_path
from sf_lightning.files.digest import digest_of
from sf_lightning.files.text import HIDDEN, get_logger, redacted

log = get_logger(__name__)

MAX_BYTES = 2**31
"""Size at which the download of a file of unknown size is aborted: a server may send without end."""


@dataclass(frozen=True)
class Store:
    """The files of a set.

    Args:
        location: A folder; or a URL to which file names are appended (`https://host/set`); or a command that
            writes a file to its standard output, with `{}` for the file name (`pipe:aws s3 cp s3://bucket/set/{}
            -`).
        cache_gb: Size in GB of the cache (`$XDG_CACHE_HOME/sf-lightning`) of remote files; the least recently used
            ones are deleted.
        attempts: Attempts to download a file.
        delay: Seconds before the second attempt; doubled before each further one.
        patience: Seconds without a byte after which a download from a web server is aborted.

    Raises:
        ValueError: if a command has no `{}`, or a password was replaced by `***` when the location was saved.
    """

    location: str
    cache_gb: float = 50.0
    attempts: int = 5
    delay: float = 1.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        if self.is_remote and HIDDEN in self.location:
            raise ValueError(
                f"{self.name} has {HIDDEN} in place of a password, as saved configs do: give the whole address"
            )
        if self.location.startswith("pipe:") and "{}" not in self.location:
            raise ValueError(f"{self.name}: expected {{}} in the command, in place of the file name")

    @property
    def name(self) -> str:
        """The location for messages and records, without passwords."""
        return redacted(self.location)

    @property
    def is_remote(self) -> bool:
        """Whether files must be downloaded."""
        return self.location.startswith("pipe:") or "://" in self.location

    @property
    def cache(self) -> Path:
        """Folder of the cache."""
        return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "sf-lightning"

    def read(self, name: str, max_bytes: int) -> bytes:
        """Returns the content of a file of at most `max_bytes` bytes; it is never taken from the cache.

        Raises:
            FileNotFoundError: if it cannot be downloaded, or is not there.
            ValueError: if it is larger.
        """
        if self.is_remote:
            self._download(name, content := io.BytesIO(), None, max_bytes)
            return content.getvalue()
        with self.open(name) as file:
            if file.seek(0, io.SEEK_END) > max_bytes:
                raise ValueError(f"{self.name}/{name} has more than {max_bytes} bytes")
            file.seek(0)
            return file.read()  # with a size, memory for all of it would be reserved

    def open(self, name: str, size: int | None = None, version: str = "") -> io.BufferedIOBase:
        """Opens a file; a remote one is downloaded first, unless it is in the cache.

        Args:
            name: Name of the file.
            size: Its size in bytes, if known: a cached file of another size is downloaded again.
            version: Version of the set: cached files of another version are not used.

        Raises:
            FileNotFoundError: if it cannot be downloaded, or is not there.
        """
        if not self.is_remote:
            path = Path(self.location, name)
            if path.exists() and not path.is_file():  # a named pipe would block
                raise FileNotFoundError(f"{path} is no regular file")
            return path.open("rb")
        path = self.cache / digest_of(f"{self.location} {version}") / name
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return self._download_to_cache(name, path, size)
        if size not in (None, os.fstat(file.fileno()).st_size):
            file.close()
            return self._download_to_cache(name, path, size)
        os.utime(file.fileno())  # marks it as recently used
        return file

    def _download_to_cache(self, name: str, path: Path, size: int | None) -> io.BufferedIOBase:
        """Returns the downloaded file, open, because another process may delete it from the cache at any moment."""
        path.parent.mkdir(parents=True, exist_ok=True)
        LRUCleanup(str(self.cache), int(self.cache_gb * 1e9), interval=None).cleanup()
        with atomic_path(path) as temporary:
            with temporary.open("wb") as target:
                self._download(name, target, size)
            file = temporary.open("rb")
        return file

    def _download(self, name: str, target: io.BufferedIOBase, size: int | None, max_bytes: int = MAX_BYTES) -> None:
        location, limit = self._file_location(name), max_bytes if size is None else size
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.delay * 2 ** (attempt - 1))
            target.seek(0)
            target.truncate()
            try:
                with gopen(self._gopen_url(location)) as stream:
                    while chunk := stream.read(1 << 20):
                        target.write(chunk)
                        if target.tell() > limit:
                            raise OSError(f"received more than {limit} bytes")
                if (received := target.tell()) == 0 or size not in (None, received):
                    raise OSError(f"received {received} bytes, expected {'some' if size is None else size}")
                return
            except OSError as error:
                reason = str(error).replace(location, redacted(location))
                log.warning("%s, attempt %d of %d: %s", redacted(location), attempt + 1, self.attempts, reason)
        raise FileNotFoundError(
            f"{redacted(location)} could not be read in {self.attempts} attempts; the log has the reason for each "
            "of them"
        )

    def _file_location(self, name: str) -> str:
        """Returns the URL of a file, or the command that writes it."""
        if self.location.startswith("pipe:"):
            return self.location.replace("{}", shlex.quote(name))
        return f"{self.location.rstrip('/')}/{quote(name)}"

    def _gopen_url(self, location: str) -> str:
        """Returns what WebDataset opens for a URL or command."""
        if not location.startswith(("http://", "https://")):
            return location
        # WebDataset's own curl command hangs on a server that stops sending.
        limits = f"--connect-timeout {self.patience:g} --speed-limit 1 --speed-time {self.patience:g}"
        return f"pipe:curl -sSfL --netrc-optional {limits} {shlex.quote(location)}"
