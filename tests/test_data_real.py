"""The real data sets, where SCRATCHNET_DATA points at a folder that holds them."""

import os

import numpy as np
import pytest

from scratchnet import data


@pytest.fixture
def load():
    def load_or_skip(name):
        if not os.environ.get("SCRATCHNET_DATA"):
            pytest.skip("SCRATCHNET_DATA is not set, so there is no real data to read")
        if not data.is_present(name):
            pytest.skip(f"{name} is not in the folder that SCRATCHNET_DATA names")
        return data.load(name)

    return load_or_skip


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_idx_sets_hold_the_published_bytes(load, name):
    dataset = load(name)  # warns, and so fails, where a file's SHA-256 is another
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert np.bincount(dataset.test.labels).min() > 0


def test_cifar10_has_its_counts_and_upright_colours(load):
    dataset = load("cifar10")
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert np.bincount(dataset.train.labels).tolist() == [5000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    # Were planes or rows mixed up, these would not hold: sky is above ground, and bluer.
    planes = dataset.train.images[dataset.train.labels == dataset.classes.index("airplane")]
    top, bottom = planes[:, :8].mean(axis=(0, 1, 2)), planes[:, -8:].mean(axis=(0, 1, 2))
    assert top[2] > bottom[2] and top[2] - top[0] > bottom[2] - bottom[0]
