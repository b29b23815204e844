"""Corpora of tests: tars in the format of Emilia."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile

from tests.toys.audio import synthetic_voice


def mp3(seconds: float, seed: int = 0) -> bytes:
    """Returns speech-like audio in Emilia's format: mp3, 24 kHz, mono."""
    buffer = io.BytesIO()
    wave = np.interp(
        np.arange(int(seconds * 24000)) / 24000,
        np.arange(int(seconds * 16000)) / 16000,
        synthetic_voice(seconds, seed=seed),
    )
    soundfile.write(buffer, wave, 24000, format="MP3")
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Writes a plain tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def emilia(folder: Path) -> Path:
    """Writes two tars with seven clips each, in the formats of Emilia and Emilia-YODAS, and returns the folder."""
    for language, tar in (("en", "EN-B000000"), ("zh", "ZH-B000001")):
        members = []
        for i in range(7):
            yodas = language == "zh"
            key = f"ZH_a_b-{i // 2}_W{i:06d}" if yodas else f"EN_B00000_S{i // 3:05d}_W{i:06d}"
            fields = {
                "text": f" sentence {i}",
                "duration": 0.8 + 0.1 * i,
                "speaker": key.rsplit("_W")[0],
                "language": language,
                "dnsmos": 3.0 + 0.05 * i,
            } | ({"_id": key, "phone_count": 7} if yodas else {"id": key, "wav": f"{key}.mp3"})
            pair = [(f"{key}.mp3", mp3(0.8 + 0.1 * i, i)), (f"{key}.json", json.dumps(fields).encode())]
            members += pair if yodas else reversed(pair)
        write_tar(folder / f"{tar}.tar", members)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Returns the content of each file of a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    """Returns a tar with one of five kinds of damage."""
    out, kind = bytearray(data), random.integers(5)
    if kind == 0:  # truncate
        return bytes(out[: random.integers(len(out))])
    if kind == 1:  # flip a few bits
        for place in random.integers(len(out), size=random.integers(1, 9)):
            out[place] ^= 1 << random.integers(8)
        return bytes(out)
    blocks = [bytes(out[i : i + 512]) for i in range(0, len(out), 512)]
    if kind == 2:  # swap two blocks
        a, b = random.integers(len(blocks), size=2)
        blocks[a], blocks[b] = blocks[b], blocks[a]
    elif kind == 3:  # drop or repeat a range of blocks
        a, length = random.integers(len(blocks)), random.integers(1, 20)
        blocks[a : a + length] = [] if random.random() < 0.5 else 2 * blocks[a : a + length]
    else:  # a wrong size in a header, with a correct checksum
        headers = [i for i, block in enumerate(blocks) if block[257:262] == b"ustar"]
        at = headers[random.integers(len(headers))]
        info = tarfile.TarInfo.frombuf(blocks[at], "utf-8", "strict")
        info.size = int(random.choice([0, 1, 10**10, 2**33 - 1, info.size + 512]))
        blocks[at] = info.tobuf(tarfile.USTAR_FORMAT if info.size < 2**33 else tarfile.GNU_FORMAT)[:512]
    return b"".join(blocks)
