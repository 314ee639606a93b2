"""The file format of MNIST: a header with the shape, then one byte per pixel or label.

http://yann.lecun.com/exdb/mnist/ (section "the IDX file format").
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from visweep.errors import DataError

_UNSIGNED_BYTES = 0x08


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array in an idx file of unsigned bytes, gzipped where the name ends in .gz.

    Raises:
        DataError: the file cannot be read, is damaged, or has another number of dimensions.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as e:
        raise _damaged(path, str(e)) from e
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, _UNSIGNED_BYTES, dimensions))
    if len(content) < header or content[:4] != magic:
        raise _damaged(path, f"no idx file of unsigned bytes in {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) != header + math.prod(shape):
        found = len(content) - header
        raise _damaged(path, f"{found} bytes where the header says {math.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"--data-dir: {path} cannot be read ({reason}); expected the file as it was published"
    )
