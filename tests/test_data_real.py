"""The real data sets, where SCRATCHNET_DATA points at a folder that holds them."""

import hashlib
import os
import struct

import numpy as np
import pytest

from scratchnet import data

# SHA-256 of the uncompressed IDX payloads, which do not depend on how a file was gzipped.
PAYLOADS = {
    "mnist": {
        "train images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "test images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "test labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion-mnist": {
        "train images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "test images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "test labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}


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


@pytest.mark.parametrize("name", PAYLOADS)
def test_the_idx_sets_hold_the_published_bytes(load, name):
    dataset = load(name)
    for split_name in ("train", "test"):
        split = getattr(dataset, split_name)
        arrays = {"images": split.images[..., 0], "labels": split.labels.astype(np.uint8)}
        for kind, array in arrays.items():
            sha256 = hashlib.sha256(payload(array)).hexdigest()
            assert sha256 == PAYLOADS[name][f"{split_name} {kind}"]


def test_cifar10_has_its_counts_and_upright_colours(load):
    dataset = load("cifar10")
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert np.bincount(dataset.train.labels).tolist() == [5000] * 10
    assert np.bincount(dataset.test.labels).tolist() == [1000] * 10
    # Were planes or rows mixed up, these would not hold: sky is above ground, and bluer.
    planes = dataset.train.images[dataset.train.labels == dataset.classes.index("airplane")]
    top, bottom = planes[:, :8].mean(axis=(0, 1, 2)), planes[:, -8:].mean(axis=(0, 1, 2))
    assert top[2] > bottom[2] and top[2] - top[0] > bottom[2] - bottom[0]
