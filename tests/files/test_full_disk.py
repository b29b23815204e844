"""A full disk under every library that writes files: the error names the path, and nothing is left beside it."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file

from sf_lightning.audio.wave import open_wave, write_wave
from sf_lightning.files.atomic import append_text, atomic_folder, atomic_path, write_atomically
from sf_lightning.training.saving import AtomicCheckpointIO

NOISE = np.random.default_rng(0).uniform(-1, 1, 400_000).astype(np.float32)


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """Limits the size of files in bytes, beyond which a write fails as on a full disk or quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _atomically(write: Callable[[Path], object]) -> Callable[[Path], None]:
    def whole(path: Path) -> None:
        with atomic_path(path, sync=True) as temporary:
            write(temporary)

    return whole


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.bin": lambda path: write_atomically(path, NOISE.tobytes()),
    "a.npz": _atomically(lambda path: np.savez(path, noise=NOISE)),
    "a.ckpt": lambda path: AtomicCheckpointIO().save_checkpoint({"noise": torch.from_numpy(NOISE)}, path),
    "a.safetensors": _atomically(lambda path: save_file({"noise": torch.from_numpy(NOISE)}, path)),
    "a.png": _atomically(Image.fromarray((NOISE * 127).astype(np.uint8).reshape(400, -1)).save),
    "a.wav": lambda path: write_wave(path, NOISE, 16000),
    "a.flac": lambda path: write_wave(path, NOISE, 16000),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("size", [0, 5_000, 200_000])
def test_a_file_that_does_not_fit_leaves_the_one_before_and_names_its_path(
    tmp_path: Path, name: str, size: int
) -> None:
    path = tmp_path / name
    path.write_text("before")
    with full_after(size), pytest.raises(OSError, match=f"File too large.*{name}|{name}.*File too large"):
        WRITERS[name](path)
    assert path.read_text() == "before" and os.listdir(tmp_path) == [name]
    WRITERS[name](path)
    assert path.stat().st_size > 200_000 and os.listdir(tmp_path) == [name]


def test_the_last_bytes_of_a_sound_are_not_lost_silently(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.flac", NOISE[:20_000], 16000)
    size = (tmp_path / "a.flac").stat().st_size
    for missing in (1, 100, 3000):
        with full_after(size - missing), pytest.raises(OSError, match=r"b\.flac"):
            write_wave(tmp_path / "b.flac", NOISE[:20_000], 16000)
    assert os.listdir(tmp_path) == ["a.flac"]


def test_an_error_that_is_no_full_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_wave(tmp_path / "a.wav", 16000) as file:
        file.write(np.zeros(10, np.int16))
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with open_wave(tmp_path / "a.wav", 16000) as file:
        file.write(np.zeros(10, np.int16)), file.write(np.zeros(0, np.int16))
    assert soundfile.info(tmp_path / "a.wav").frames == 10


@pytest.mark.parametrize("name", ["a.safetensors", "a.txt"])
def test_a_folder_that_does_not_fit_leaves_nothing_and_names_its_path(tmp_path: Path, name: str) -> None:
    with (
        full_after(5_000),
        pytest.raises(OSError, match=r"File too large: .*decoder'"),
        atomic_folder(tmp_path / "decoder") as inner,
    ):
        if name == "a.txt":
            (inner / name).write_text("x" * 10_000)
        else:
            save_file({"noise": torch.from_numpy(NOISE)}, inner / name)
    assert os.listdir(tmp_path) == []


def test_text_that_does_not_fit_names_its_file(tmp_path: Path) -> None:
    append_text(tmp_path / "a.csv", "1\n")
    with full_after(4), pytest.raises(OSError, match=r"File too large: .*a\.csv"):
        append_text(tmp_path / "a.csv", "23456\n")
    assert (tmp_path / "a.csv").read_text() == "1\n23"
