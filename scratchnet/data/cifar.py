"""CIFAR-10 in its binary form: six files of records, in a folder or in the archive they come in.

A record is one label byte and 3072 pixel bytes: the red, green and blue plane, each 32 rows of 32.
Source: A. Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
"""

import gzip
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from scratchnet.data.dataset import Split
from scratchnet.data.errors import DataError

TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST_FILES = ("test_batch.bin",)
ARCHIVE = "cifar-10-binary.tar.gz"
SIDE, PLANES, CLASSES = 32, 3, 10
RECORD = 1 + PLANES * SIDE * SIDE
CHUNK_RECORDS = 1000  # 3 MB: what is held beside the arrays while they fill


def read_cifar10(folder: str | Path, records: int = 10_000) -> tuple[Split, Split]:
    """Read train and test split from the six batch files in `folder`, else from the archive there.

    records  the number of records that each file must have
    returns  5 * records and records images (32, 32, 3), in the order of the files
    raises   DataError  a file is missing, has another size, or a label above 9
    """
    folder = Path(folder)
    arrays = _Arrays(records)
    try:
        if all((folder / name).exists() for name in TRAIN_FILES + TEST_FILES):
            for name in TRAIN_FILES + TEST_FILES:
                path = folder / name
                with path.open("rb") as stream:
                    arrays.fill(name, stream, path.stat().st_size, str(path))
        else:
            _read_archive(folder / ARCHIVE, arrays)
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: cannot be read ({error.strerror or error})"
        ) from None
    return arrays.splits()


class _Arrays:
    """The two splits, filled file by file in any order, each image going straight to its place."""

    def __init__(self, records: int):
        self.records = records
        files = {"train": TRAIN_FILES, "test": TEST_FILES}
        self.images = {
            split: np.empty((records * len(names), SIDE, SIDE, PLANES), np.uint8)
            for split, names in files.items()
        }
        self.labels = {
            split: np.empty(records * len(names), np.int64) for split, names in files.items()
        }
        self.places = {
            name: (split, i * records)
            for split, names in files.items()
            for i, name in enumerate(names)
        }
        self.missing = set(self.places)

    def fill(self, name: str, stream: BinaryIO, size: int, where: str) -> None:
        if size != self.records * RECORD:
            raise DataError(
                f"{where}: has {size} bytes, accepted are {self.records * RECORD} "
                f"({self.records} records of {RECORD})"
            )
        split, start = self.places[name]
        for first in range(start, start + self.records, CHUNK_RECORDS):
            stop = min(first + CHUNK_RECORDS, start + self.records)
            raw = stream.read((stop - first) * RECORD)
            if len(raw) != (stop - first) * RECORD:
                whole = first - start + len(raw) // RECORD
                raise DataError(f"{where}: ends early, after record {whole}")
            chunk = np.frombuffer(raw, np.uint8).reshape(stop - first, RECORD)
            labels = chunk[:, 0]
            if labels.max() >= CLASSES:
                bad = int(np.argmax(labels >= CLASSES))
                raise DataError(
                    f"{where}: record {first - start + bad} has label {labels[bad]}, "
                    f"accepted are 0 to {CLASSES - 1}"
                )
            self.labels[split][first:stop] = labels
            planes = chunk[:, 1:].reshape(-1, PLANES, SIDE, SIDE)
            self.images[split][first:stop] = planes.transpose(0, 2, 3, 1)
        self.missing.discard(name)

    def splits(self) -> tuple[Split, Split]:
        return tuple(Split(self.images[name], self.labels[name]) for name in ("train", "test"))


def _read_archive(path: Path, arrays: _Arrays) -> None:
    try:
        with gzip.open(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if member.isfile() and name in arrays.places:
                    arrays.fill(
                        name, archive.extractfile(member), member.size, f"{path}: {member.name}"
                    )
            while stream.read(1 << 20):  # to the end of the gzip stream, where its checksum stands
                pass
    except EOFError:
        raise DataError(f"{path}: the gzip stream ends early, the file is truncated") from None
    except (gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path}: is no intact tar.gz archive ({error})") from None
    if arrays.missing:
        raise DataError(f"{path}: lacks {', '.join(sorted(arrays.missing))}")
