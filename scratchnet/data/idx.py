"""IDX, the format of MNIST and Fashion-MNIST.

Two zero bytes, a type code (0x08: unsigned bytes), the number of axes, each axis as a big-endian
32-bit number, then the elements, last axis fastest. Source: LeCun, Cortes and Burges, "The MNIST
database of handwritten digits".
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from scratchnet.data.dataset import Split
from scratchnet.data.errors import DataError

UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"  # an IDX file starts with two zero bytes, so the content tells them apart
CHUNK = 1 << 20


def read_idx(path: str | Path, ndim: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes with `ndim` axes, gzipped or not.

    returns  uint8 array of the shape that the header states
    raises   DataError  wrong magic number, more or fewer bytes than the header states, damaged gzip
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            zipped = raw.peek(2)[:2] == GZIP_MAGIC
            with gzip.GzipFile(fileobj=raw) if zipped else raw as stream:
                return _read_stream(stream, path, ndim)
    except EOFError:
        raise DataError(f"{path}: the gzip stream ends early, the file is truncated") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the gzip stream is damaged ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def read_idx_set(folder: Path, train: int, test: int, side: int = 28) -> tuple[Split, Split]:
    """Read the four files of MNIST or Fashion-MNIST from `folder`: train and test split.

    train, test  the numbers of images that the set has
    side         height and width in pixels
    raises       DataError  a file is damaged or has another shape
    """
    return (
        _read_split(folder, "train", (train, side, side)),
        _read_split(folder, "t10k", (test, side, side)),
    )


def _read_split(folder: Path, prefix: str, shape: tuple[int, int, int]) -> Split:
    arrays = []
    for kind, expected in (("images-idx3", shape), ("labels-idx1", shape[:1])):
        plain = folder / f"{prefix}-{kind}-ubyte"
        path = plain if plain.exists() else plain.with_name(plain.name + ".gz")
        array = read_idx(path, ndim=len(expected))
        if array.shape != expected:
            raise DataError(f"{path}: has shape {array.shape}, accepted is {expected}")
        arrays.append(array)
    images, labels = arrays
    return Split(images[..., None], labels)


def _read_stream(stream: BinaryIO, path: Path, ndim: int) -> np.ndarray:
    magic = bytes([0, 0, UNSIGNED_BYTE, ndim])
    header = stream.read(4 + 4 * ndim)
    if header[:4] != magic:
        raise DataError(
            f"{path}: starts with the bytes {header[:4].hex() or '(none)'}, accepted is the IDX "
            f"magic number {magic.hex()} (unsigned bytes, {ndim} {'axis' if ndim == 1 else 'axes'})"
        )
    if len(header) < 4 + 4 * ndim:
        raise DataError(f"{path}: ends inside its header, after {len(header)} bytes")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
    expected = math.prod(shape)
    # Grown by what is there, not allocated by what is claimed: the header may lie. One byte more
    # than expected is asked for, which finds trailing bytes and makes gzip compare its checksum.
    body = bytearray()
    while len(body) <= expected:
        chunk = stream.read(min(CHUNK, expected + 1 - len(body)))
        if not chunk:
            break
        body += chunk
    if len(body) != expected:
        found = f"only {len(body)}" if len(body) < expected else "more"
        raise DataError(
            f"{path}: the header states shape {shape}, which is {expected} bytes, "
            f"but {found} follow"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)
