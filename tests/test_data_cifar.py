"""CIFAR-10's binary form, from a folder and from its archive."""

import gzip
import io
import tarfile
import tracemalloc

import numpy as np
import pytest

from scratchnet.data import DataError
from scratchnet.data.cifar import ARCHIVE, TEST_FILES, TRAIN_FILES, read_cifar10

RECORDS = 3
NAMES = TRAIN_FILES + TEST_FILES


def batch_contents(records=RECORDS):
    rng = np.random.default_rng(0)
    contents = {}
    for name in NAMES:
        batch = rng.integers(0, 256, (records, 3073), dtype=np.uint8)
        batch[:, 0] %= 10
        contents[name] = batch.tobytes()
    return contents


def tar_gz(contents):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def write_folder(folder, contents):
    for name, content in contents.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_pixels_and_labels_land_where_they_belong(tmp_path, form):
    contents = batch_contents()
    if form == "folder":
        write_folder(tmp_path, contents)
    else:  # members in another order, and files that are not batches
        mixed = {"readme.html": b"hello", **dict(reversed(contents.items()))}
        (tmp_path / ARCHIVE).write_bytes(tar_gz(mixed))
    train, test = read_cifar10(tmp_path, records=RECORDS)
    assert train.images.shape == (5 * RECORDS, 32, 32, 3)
    assert test.images.shape == (RECORDS, 32, 32, 3)
    n, i, j, c = 4, 5, 6, 2  # record 1 of the second file, by the definition of the format
    record = contents["data_batch_2.bin"][3073:]
    assert train.labels[n] == record[0]
    assert train.images[n, i, j, c] == record[1 + c * 1024 + i * 32 + j]
    np.testing.assert_array_equal(
        test.images.transpose(0, 3, 1, 2).ravel(),
        np.frombuffer(contents["test_batch.bin"], np.uint8).reshape(-1, 3073)[:, 1:].ravel(),
    )


@pytest.mark.parametrize("form", ["folder", "archive"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch[:-1], "has 9218 bytes, accepted are 9219"),
        (lambda batch: batch + b"!", "has 9220 bytes, accepted are 9219"),
        (lambda batch: batch[:3073], "has 3073 bytes, accepted are 9219"),
        (lambda batch: b"", "has 0 bytes, accepted are 9219"),
        (
            lambda batch: batch[:3073] + b"\x0a" + batch[3074:],
            "record 1 has label 10, accepted are 0 to 9",
        ),
    ],
)
def test_a_wrong_batch_is_refused_by_name(tmp_path, form, change, message):
    contents = batch_contents()
    contents["data_batch_3.bin"] = change(contents["data_batch_3.bin"])
    if form == "folder":
        write_folder(tmp_path, contents)
    else:
        (tmp_path / ARCHIVE).write_bytes(tar_gz(contents))
    with pytest.raises(DataError, match=f"data_batch_3.bin: .*{message}"):
        read_cifar10(tmp_path, records=RECORDS)


def test_an_archive_without_a_batch_is_refused(tmp_path):
    contents = batch_contents()
    del contents["data_batch_4.bin"], contents["test_batch.bin"]
    (tmp_path / ARCHIVE).write_bytes(tar_gz(contents))
    with pytest.raises(DataError, match="lacks data_batch_4.bin, test_batch.bin"):
        read_cifar10(tmp_path, records=RECORDS)


@pytest.mark.parametrize("part", [0.05, 0.5, 0.95, 0.99999])
def test_a_truncated_archive_is_refused(tmp_path, part):
    whole = tar_gz(batch_contents())
    (tmp_path / ARCHIVE).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(DataError, match="cifar-10-binary.tar.gz: .*truncated"):
        read_cifar10(tmp_path, records=RECORDS)


def test_a_damaged_archive_is_refused(tmp_path):
    whole = bytearray(tar_gz(batch_contents()))
    whole[-6] ^= 1  # in the checksum of the gzip stream
    for content in (bytes(whole), b"<html>not found</html>", gzip.compress(b"no tar" * 200)):
        (tmp_path / ARCHIVE).write_bytes(content)
        with pytest.raises(DataError, match="is no intact tar.gz archive"):
            read_cifar10(tmp_path, records=RECORDS)


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(DataError, match="cifar-10-binary.tar.gz: cannot be read"):
        read_cifar10(tmp_path, records=RECORDS)


def test_reading_holds_little_beside_the_arrays(tmp_path):
    records = 2000
    write_folder(tmp_path, batch_contents(records))
    tracemalloc.start()
    try:
        train, test = read_cifar10(tmp_path, records=records)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    held = sum(a.nbytes for split in (train, test) for a in (split.images, split.labels))
    assert peak < held + 8e6, (peak, held)
