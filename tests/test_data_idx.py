"""The IDX reader: what it accepts comes back bit for bit, everything else is refused by name."""

import gzip
import hashlib
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchnet.data import DataError
from scratchnet.data.idx import read_idx, read_idx_set


def idx_bytes(array, type_code=8):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, type_code, array.ndim, *array.shape)
    return header + array.tobytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("idx")


@given(
    shape=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
    zipped=st.booleans(),
)
def test_round_trip(scratch, shape, seed, zipped):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = scratch / "round-trip"
    path.write_bytes(gzip.compress(idx_bytes(array)) if zipped else idx_bytes(array))
    read = read_idx(path, ndim=len(shape))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


@given(cut=st.integers(0, 4 + 4 * 3 + 24 - 1), zipped=st.booleans())
def test_every_truncation_is_refused(scratch, cut, zipped):
    whole = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    path = scratch / "cut"
    path.write_bytes(gzip.compress(whole[:cut]) if zipped else whole[:cut])
    with pytest.raises(DataError, match="cut: "):
        read_idx(path, ndim=3)


@given(cut=st.integers(2, 10_000))
def test_every_truncated_gzip_is_refused(scratch, cut):
    pixels = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    zipped = gzip.compress(idx_bytes(pixels))
    path = scratch / "cut.gz"
    path.write_bytes(zipped[: min(cut, len(zipped) - 1)])
    with pytest.raises(DataError, match="cut.gz: the gzip stream ends early, .* truncated"):
        read_idx(path, ndim=3)


LABELS = np.arange(5, dtype=np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"starts with the bytes \(none\), accepted is .* 00000801"),
        (b"\x00\x00\x08", "starts with the bytes 000008, accepted"),
        (b"\x00\x00\x08\x03" + bytes(20), r"starts with the bytes 00000803, .* 00000801 .* 1 axis"),
        (idx_bytes(LABELS, type_code=0x0D), "starts with the bytes 00000d01, accepted"),
        (b"\x89PNG....", "starts with the bytes 89504e47, accepted"),
        (b"\x00\x00\x08\x01\x00\x00", "ends inside its header, after 6 bytes"),
        (idx_bytes(LABELS) + b"!", r"states shape \(5,\), which is 5 bytes, but more follow"),
        (idx_bytes(LABELS)[:-2], r"states shape \(5,\), which is 5 bytes, but only 3 follow"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_wrong_content_is_refused(tmp_path, content, message, zipped):
    path = tmp_path / "labels"
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError, match=f"labels: .*{message}"):
        read_idx(path, ndim=1)


def test_a_lying_count_allocates_nothing(tmp_path):
    path = tmp_path / "liar"
    path.write_bytes(b"\x00\x00\x08\x03" + b"\xff" * 12 + bytes(100))
    with pytest.raises(DataError, match="but only 100 follow"):
        read_idx(path, ndim=3)


def test_damaged_gzip_is_refused(tmp_path):
    zipped = bytearray(gzip.compress(idx_bytes(LABELS)))
    zipped[-6] ^= 1  # in the checksum
    path = tmp_path / "damaged.gz"
    path.write_bytes(zipped)
    with pytest.raises(DataError, match="damaged.gz: the gzip stream is damaged"):
        read_idx(path, ndim=1)
    path.write_bytes(gzip.compress(idx_bytes(LABELS)) + b"trailing")
    with pytest.raises(DataError, match="damaged.gz: the gzip stream is damaged"):
        read_idx(path, ndim=1)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: cannot be read"):
        read_idx(tmp_path / "nowhere", ndim=1)


def write_set(folder: Path, train=4, test=3, side=5, suffix=".gz"):
    """Four small IDX files, named as MNIST's. Returns the arrays by file name without suffix."""
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", train), ("t10k", test)):
        pixels = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
        arrays[f"{prefix}-images-idx3-ubyte"] = pixels
        arrays[f"{prefix}-labels-idx1-ubyte"] = rng.integers(0, 10, count, dtype=np.uint8)
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        content = idx_bytes(array)
        (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)
    return arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_set_is_read_zipped_or_not(tmp_path, suffix):
    arrays = write_set(tmp_path, suffix=suffix)
    train, test = read_idx_set(tmp_path, train=4, test=3, side=5)
    np.testing.assert_array_equal(train.images[..., 0], arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(test.labels, arrays["t10k-labels-idx1-ubyte"])
    assert train.images.shape == (4, 5, 5, 1) and test.labels.dtype == np.int64


def test_a_set_of_another_size_is_refused(tmp_path):
    write_set(tmp_path)
    with pytest.raises(DataError, match=r"train-images.*has shape \(4, 5, 5\), .* \(6, 5, 5\)"):
        read_idx_set(tmp_path, train=6, test=3, side=5)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx_bytes(np.zeros(2, np.uint8)))
    with pytest.raises(DataError, match=r"t10k-labels.*has shape \(2,\), accepted is \(3,\)"):
        read_idx_set(tmp_path, train=4, test=3, side=5)


def test_files_of_another_set_with_the_same_names_are_told(tmp_path):
    arrays = write_set(tmp_path)
    sums = {name: hashlib.sha256(idx_bytes(a)).hexdigest() for name, a in arrays.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_idx_set(tmp_path, train=4, test=3, side=5, sums=sums)
    other = arrays["train-images-idx3-ubyte"] ^ 1
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(other)))
    with pytest.warns(UserWarning, match="train-images-idx3-ubyte.gz is not the published file"):
        train, _ = read_idx_set(tmp_path, train=4, test=3, side=5, sums=sums)
    np.testing.assert_array_equal(train.images[..., 0], other)
