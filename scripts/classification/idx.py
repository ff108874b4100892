"""Reading IDX files, the format of MNIST and its relatives."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from npg.errors import ConfigurationError

# A header is two zero bytes, the kind of number (8: unsigned byte), the number of dimensions, and
# their sizes, big-endian.
UNSIGNED_BYTE = 8


def read(file: Path, dimensions: int) -> np.ndarray:
    """Reads an array of bytes.

    Args:
        file: IDX file, gzipped or not.
        dimensions: That it should have: 3 for images, 1 for labels.

    Returns:
        The array, uint8.

    Raises:
        ConfigurationError: If the file is damaged, cut short, or something else.
    """
    raw = file.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            raise _unusable(file, f"is cut short or damaged ({error})") from error
    header = 4 + 4 * dimensions
    if raw[:4] != bytes([0, 0, UNSIGNED_BYTE, dimensions]) or len(raw) < header:
        raise _unusable(file, f"is no IDX file of bytes with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        size = " × ".join(map(str, shape))
        raise _unusable(
            file, f"holds {len(raw) - header:,} bytes of data where its header says {size}"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _unusable(file: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{file} (--data-dir) {reason}: fetch it again, or give another directory"
    )
