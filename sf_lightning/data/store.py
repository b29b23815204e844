"""Where the files of a shard set lie: a folder, a web server, or whatever a command brings.

Files that come from elsewhere are kept in a cache of bounded size, so that a shard is brought once while it is
needed. Knows nothing of what is in them.
"""

import hashlib
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

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

    Raises:
        ValueError: if a command has no place for the name.
    """

    place: str
    cache_gb: float = 50.0
    attempts: int = 5
    delay: float = 1.0

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

    def path(self, name: str, size: int | None = None) -> Path:
        """Returns a local path of a file, which is brought first where it must be.

        Args:
            name: Of the file.
            size: Its bytes, if they are known: a file of another size is brought again.

        Raises:
            FileNotFoundError: if it cannot be had.
        """
        if not self.is_remote:
            return Path(self.place) / name
        digest = hashlib.sha256(self.place.encode()).hexdigest()[:16]
        path = self.cache / digest / name
        if path.is_file() and size in (None, path.stat().st_size):
            os.utime(path)  # used just now: what is deleted is what was used longest ago
            return path
        self._bring(name, path, size)
        return path

    def _bring(self, name: str, path: Path, size: int | None) -> None:
        place = self.place
        url = place.replace("{}", name) if place.startswith("pipe:") else f"{place.rstrip('/')}/{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        LRUCleanup(str(self.cache), int(self.cache_gb * 1e9), interval=None).cleanup()
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.delay * 2 ** (attempt - 1))
            try:
                with gopen(url) as stream, fresh.open("wb") as file:
                    while data := stream.read(1 << 20):
                        file.write(data)
                came = fresh.stat().st_size
                if came == 0 or size not in (None, came):
                    raise OSError(f"{came} bytes came, wanted {'some' if size is None else size}")
                fresh.replace(path)
                return
            except OSError as error:
                log.warning("%s, attempt %d of %d: %s", url, attempt + 1, self.attempts, error)
        fresh.unlink(missing_ok=True)
        raise FileNotFoundError(
            f"{url} could not be read in {self.attempts} attempts; see the log for each of them"
        )
