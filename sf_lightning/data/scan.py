"""Finds the audio files or tars of a corpus, and everything that looks like speech but is left out."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sf_lightning.audio.wave import AUDIO_SUFFIXES

OTHER_SUFFIXES = (
    *(
        ".m4a",
        ".m4b",
        ".mp4",
        ".aac",
        ".wma",
        ".amr",
        ".awb",
        ".webm",
        ".weba",
        ".mka",
        ".ape",
        ".wv",
        ".tta",
        ".spx",
    ),
    *(".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".zip"),
)
"""Suffixes of audio that is not read, and of archives."""

OTHER_KIND = "of another kind"


@dataclass(frozen=True)
class Scan:
    """The files of a corpus.

    Attributes:
        folder: Folder of the corpus; or its only tar.
        audio: Audio files, sorted.
        tars: Tars, sorted.
        left_out: Cause of each path that is left out.
    """

    folder: Path
    audio: tuple[Path, ...]
    tars: tuple[Path, ...]
    left_out: dict[Path, str]

    @property
    def counts(self) -> Counter[str]:
        """Number of paths that are left out, by cause."""
        return Counter(f"left out: {cause}" for cause in self.left_out.values())

    @property
    def lines(self) -> list[str]:
        """A line about each path that is left out; one line for all files of another kind."""
        kinds = Counter(cause for cause in self.left_out.values() if cause.startswith(OTHER_KIND))
        firsts = {cause: path for path, cause in sorted(self.left_out.items(), reverse=True)}
        lines = [f"left out: {count} files {cause}, such as {firsts[cause]}" for cause, count in kinds.items()]
        return lines + [
            f"left out: {path}: {cause}" for path, cause in sorted(self.left_out.items()) if cause not in kinds
        ]


def scan(corpus: Path) -> Scan:
    """Searches a folder recursively, through links too: each folder once, under its own path if it has one.

    Shard sets in the folder, and unfinished ones, are no part of the corpus.

    Raises:
        FileNotFoundError: if the folder does not exist or has no speech.
        NotADirectoryError: if it is a file other than a tar.
        ValueError: if it is a shard set, or has both audio files and tars.
    """
    if not corpus.exists():
        raise FileNotFoundError(f"no folder {corpus}: give a folder of audio files or of tars with --audio")
    if (corpus / "manifest.json").is_file():
        raise ValueError(f"--audio {corpus} is a shard set; expected a folder of audio files or of tars")
    if corpus.is_file():
        if corpus.suffix != ".tar":
            raise NotADirectoryError(f"{corpus} is a file: give its folder, or a tar, with --audio")
        return Scan(corpus, (), (corpus,), {})
    left_out: dict[Path, str] = {}
    files = list(_walk(corpus, left_out))
    tars = tuple(sorted(path for path in files if path.suffix == ".tar"))
    audio = tuple(sorted(path for path in files if path.suffix.lower() in AUDIO_SUFFIXES))
    if tars and audio:
        raise ValueError(f"{corpus} has tars ({tars[0]}) and audio files ({audio[0]}): give a folder of one kind")
    if not tars and not audio:
        found = f"; left out: {next(iter(left_out.items()))}" if left_out else ""
        raise FileNotFoundError(
            f"no audio under {corpus}: expected files with suffix {', '.join(AUDIO_SUFFIXES)}{found}"
        )
    return Scan(corpus, audio, tars, left_out)


def _walk(corpus: Path, left_out: dict[Path, str]) -> Iterator[Path]:
    """Yields the regular files of a folder whose suffix is that of audio or a tar; adds causes to `left_out`."""
    folders, links, known = [corpus], list[Path](), set[tuple[int, int]]()
    while folders or links:
        # Links come last, so that a folder that is in the corpus itself keeps its own path.
        folder = folders.pop() if folders else links.pop()
        try:
            status = folder.stat()
            if (identity := (status.st_dev, status.st_ino)) in known:
                left_out[folder] = "link to a folder that is read already"
                continue
            known.add(identity)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
        except PermissionError:
            left_out[folder] = "folder without read permission"
            continue
        names = {entry.name for entry in entries}
        if folder != corpus and "build.json" in names and ("manifest.json" in names or folder.suffix == ".partial"):
            continue  # a shard set, maybe unfinished
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(path)
            elif cause := _cause(entry):
                left_out[path] = cause
            elif path.suffix == ".tar" or path.suffix.lower() in AUDIO_SUFFIXES:
                yield path


def _cause(entry: os.DirEntry[str]) -> str | None:
    """Returns why a file that may be speech is left out, or None."""
    name = entry.name.lower()
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "dangling link"
    if name.endswith(OTHER_SUFFIXES):
        suffix = next(suffix for suffix in OTHER_SUFFIXES if name.endswith(suffix))
        return f"{OTHER_KIND} ({suffix})"
    if name.endswith((".tar", *AUDIO_SUFFIXES)):
        if not entry.is_file():
            return "no regular file"
        if not os.access(entry.path, os.R_OK):
            return "file without read permission"
    return None
