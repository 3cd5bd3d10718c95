"""The real data sets, where SCRATCHNET_DATA points at a folder that holds them."""

import hashlib
import os
import struct

import numpy as np
import pytest

from scratchnet import data
from scratchnet.data.sources import FASHION_MNIST_SUMS, MNIST_SUMS


@pytest.fixture
def load():
    def load_or_skip(name):
        if not os.environ.get("SCRATCHNET_DATA"):
            pytest.skip("SCRATCHNET_DATA is not set, so there is no real data to read")
        if not data.is_present(name):
            pytest.skip(f"{name} is not in the folder that SCRATCHNET_DATA names")
        return data.load(name)

    return load_or_skip


def payload(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize(
    ("name", "sums"), [("mnist", MNIST_SUMS), ("fashion-mnist", FASHION_MNIST_SUMS)]
)
def test_the_idx_sets_hold_the_published_bytes(load, name, sums):
    dataset = load(name)
    for prefix, split in (("train", dataset.train), ("t10k", dataset.test)):
        images, labels = split.images[..., 0], split.labels.astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            sha256 = hashlib.sha256(payload(array)).hexdigest()
            assert sha256 == sums[f"{prefix}-{kind}-ubyte"]


def test_cifar10_has_its_counts_and_upright_colours(load):
    dataset = load("cifar10")
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert np.bincount(dataset.train.labels).tolist() == [5000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    # Were planes or rows mixed up, these would not hold: sky is above ground, and bluer.
    planes = dataset.train.images[dataset.train.labels == dataset.classes.index("airplane")]
    top, bottom = planes[:, :8].mean(axis=(0, 1, 2)), planes[:, -8:].mean(axis=(0, 1, 2))
    assert top[2] > bottom[2] and top[2] - top[0] > bottom[2] - bottom[0]
