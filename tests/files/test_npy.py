"""`.npy` files of others: an array as numpy reads it, or a ValueError, whatever is damaged."""

import io
import random

import numpy as np
import pytest

from sf_lightning.data.sample import BadSample, read_tokens
from sf_lightning.data.writer import npy_bytes
from sf_lightning.files.npy import read_npy


@pytest.mark.parametrize(
    "array", [np.arange(7, dtype=np.int32), np.ones((2, 3), np.float16), np.int64(3), np.zeros(0)]
)
def test_an_array_is_read_as_numpy_reads_it(array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    read = read_npy(buffer.getvalue())
    assert read.dtype == array.dtype and read.shape == array.shape and np.array_equal(read, array)


def with_header(text: str, version: int = 1) -> bytes:
    """Returns a `.npy` of seven integers with another header."""
    size = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(size, "little") + text.encode() + bytes(56)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        npy_bytes(np.arange(7))[:-1],
        npy_bytes(np.arange(7)) + b"x",
        npy_bytes(np.array([None])),
        npy_bytes(np.asfortranarray(np.ones((2, 3)))),
        b"RIFF" * 40,
        npy_bytes(np.arange(7)).replace(b")", b"i"),
        with_header("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,)}\n"),
        with_header("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}\n"),
        with_header("{'descr': '|V0', 'fortran_order': False, 'shape': (10,)}\n"),
        with_header("{'descr': '<i8', 'fortran_order': False, 'shape': (7,)}\n", version=3),
        with_header("{[]: 1}\n"),
        with_header("(" * 9000),
        with_header("9" * 9000),
    ],
)
def test_a_broken_array_is_a_bad_sample(data: bytes) -> None:
    with pytest.raises(BadSample, match=r"incomplete|undecodable"):
        read_tokens(data, 50)


def test_any_flipped_bit_gives_an_array_or_a_bad_sample() -> None:
    data, draw = npy_bytes(np.arange(7, dtype=np.int32)), random.Random(0)
    for place in [*range(8 * 90), *(draw.randrange(8 * len(data)) for _ in range(200))]:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        try:
            assert read_tokens(bytes(flipped), 50).ndim == 1
        except BadSample as error:
            assert error.cause in ("undecodable", "token count")
