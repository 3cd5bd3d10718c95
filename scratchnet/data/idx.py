"""IDX, the format of MNIST and Fashion-MNIST.

Two zero bytes, a type code (0x08: unsigned bytes), the number of axes, each axis as a big-endian
32-bit number, then the elements, last axis fastest. Source: LeCun, Cortes and Burges, "The MNIST
database of handwritten digits".
"""

import gzip
import hashlib
import math
import warnings
import zlib
from collections.abc import Mapping
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


def read_idx_set(
    folder: Path, train: int, test: int, side: int = 28, sums: Mapping[str, str] | None = None
) -> tuple[Split, Split]:
    """Read the four files of MNIST or Fashion-MNIST from `folder`: train and test split.

    The two have the same names and shapes, so that only the bytes tell them apart: a file whose
    bytes are not those of `sums` is read with a warning.

    train, test  the numbers of images that the set has
    side         height and width in pixels
    sums         SHA-256 of each unpacked file, by name
    raises       DataError  a file is damaged or has another shape
    """
    sums = sums or {}
    return (
        _read_split(folder, "train", (train, side, side), sums),
        _read_split(folder, "t10k", (test, side, side), sums),
    )


def idx_sha256(array: np.ndarray) -> str:
    """The SHA-256 of the unpacked IDX file that holds the uint8 array."""
    sha256 = hashlib.sha256(bytes([0, 0, UNSIGNED_BYTE, array.ndim]))
    sha256.update(np.array(array.shape, ">u4").tobytes())
    sha256.update(np.ascontiguousarray(array))
    return sha256.hexdigest()


def _read_split(
    folder: Path, prefix: str, shape: tuple[int, int, int], sums: Mapping[str, str]
) -> Split:
    arrays = []
    for kind, expected in (("images-idx3", shape), ("labels-idx1", shape[:1])):
        plain = folder / f"{prefix}-{kind}-ubyte"
        path = plain if plain.exists() else plain.with_name(plain.name + ".gz")
        array = read_idx(path, ndim=len(expected))
        if array.shape != expected:
            raise DataError(f"{path}: has shape {array.shape}, accepted is {expected}")
        if plain.name in sums and (found := idx_sha256(array)) != sums[plain.name]:
            warnings.warn(
                f"{path} is not the published file: its content has SHA-256 {found}, published is "
                f"{sums[plain.name]}. What is measured on it does not hold for the data set",
                stacklevel=2,
            )
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
