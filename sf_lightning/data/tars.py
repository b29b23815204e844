"""Members of a tar, grouped into clips wherever they are in it."""

import os
import posixpath
import re
import tarfile
from typing import BinaryIO

from sf_lightning.audio.wave import AUDIO_SUFFIXES
from sf_lightning.data.scan import OTHER_SUFFIXES

PRECOMPUTED = ("tokens.npy", "speaker.npy")
"""Suffixes of precomputed files beside the audio: tokens, and the x-vector of the speaker."""

SUFFIXES = (*AUDIO_SUFFIXES, *OTHER_SUFFIXES, ".json", *(f".{name}" for name in PRECOMPUTED))
"""Suffixes before which a dot is part of the key; at another one, a key ends at its first dot, as in WebDataset."""


class TarMembers:
    """Reads the headers of a tar.

    Args:
        file: The tar, opened at its beginning.

    Attributes:
        clips: Name of the member of each suffix, by key; in the order in which keys first appear.
        problems: Name, cause and reason of each member that is only counted.
        damage: Reason why the end of the tar cannot be reached; empty if it can.
    """

    # Not WebDataset's own reader: it takes a cut or broken header for the end of the tar, and loses clips whose
    # members are not adjacent.

    def __init__(self, file: BinaryIO) -> None:
        self.clips: dict[str, dict[str, str]] = {}
        self.problems: list[tuple[str, str, str]] = []
        self.damage = ""
        self._file = file
        self._positions: dict[str, tuple[int, int]] = {}
        size = os.fstat(file.fileno()).st_size
        links: list[tuple[str, str]] = []
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    tar.members = []  # type: ignore[attr-defined]  # it would grow to many thousands
                    name = posixpath.normpath(info.name)
                    if info.issym():
                        links.append(
                            (name, posixpath.normpath(posixpath.join(posixpath.dirname(name), info.linkname)))
                        )
                    elif info.islnk():
                        links.append((name, posixpath.normpath(info.linkname)))
                    elif info.isreg():
                        if info.offset_data + info.size > size:
                            raise tarfile.ReadError(f"{info.name} exceeds the end of the file")
                        self._add(name, (info.offset_data, info.size))
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    self.damage = f"neither a header nor the end mark at byte {tar.offset} of {size}"
        except tarfile.TarError as error:
            self.damage = str(error)
        for name, target in links:
            if target in self._positions:
                self._add(name, self._positions[target])
            elif _suffix(name) in AUDIO_SUFFIXES:
                self.problems.append((name, "link out of the tar", f"to {target}"))

    def read(self, name: str) -> bytes:
        """Returns the content of a member; its file must still be open."""
        offset, size = self._positions[name]
        self._file.seek(offset)
        return self._file.read(size)

    def _add(self, name: str, position: tuple[int, int]) -> None:
        folder, base = posixpath.split(name)
        if base.startswith(".") or "." not in base or re.match(r"__[^/]*__($|/)", name):
            return
        suffix = _suffix(base) or base[base.index(".") :].lower()
        clip = self.clips.setdefault(posixpath.join(folder, base[: -len(suffix)]), {})
        if suffix[1:] in clip:
            if suffix in AUDIO_SUFFIXES:
                self.problems.append((name, "duplicate key", "twice in the tar"))
            return
        clip[suffix[1:]] = name
        self._positions[name] = position


def _suffix(name: str) -> str:
    """Returns the known suffix of a name; "" if it has none."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
