"""Reading `.npy` files that others wrote: whatever their header holds, they are an array or a ValueError."""

import io
import warnings
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def read_npy(data: bytes) -> NDArray:
    """Returns the array in the bytes of a `.npy` file, read-only.

    Raises:
        ValueError: if it is broken, holds another number of bytes than its header says, or is an array of objects.
    """
    # Not np.load: it parses the header for longer than everything else takes but the audio decoder.
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, dtype = _parse_npy_header(data[:start])
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


@lru_cache(maxsize=4096)
def _parse_npy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    stream = io.BytesIO(header)
    if (version := np.lib.format.read_magic(stream)) != (1, 0):
        raise ValueError(f".npy of version {version}, expected (1, 0)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the Python literals in a damaged header
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # one flipped bit: SyntaxError, TokenError, TypeError, MemoryError of the parser
        raise ValueError(f".npy with a damaged header ({type(error).__name__})") from error
    if fortran_order and len(shape) > 1:
        raise ValueError(".npy in Fortran order, expected C order")
    if any(not 0 <= size < 1 << 40 for size in shape):
        raise ValueError(f".npy of shape {shape}")
    return shape, dtype
