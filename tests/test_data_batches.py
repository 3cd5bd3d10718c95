"""Splits, data sets and batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchnet.data import Batches, DataError, Dataset, RandomShift, Split


def numbered_split(N, shape=(2, 3, 1)):
    """A split whose image n holds the number n, in two bytes, and whose label is n."""
    images = np.zeros((N, *shape), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.arange(N) % 256, np.arange(N) // 256
    return Split(images, np.arange(N))


@given(N=st.integers(1, 300), batch_size=st.integers(1, 310), seed=st.none() | st.integers(0, 99))
def test_each_image_comes_once_with_its_label(N, batch_size, seed):
    rng = None if seed is None else np.random.default_rng(seed)
    batches = Batches(numbered_split(N), batch_size, rng=rng, scale=1)
    for _ in range(2):
        epoch = list(batches)
        assert len(epoch) == len(batches)
        assert [len(x) for x, _ in epoch[:-1]] == [batch_size] * (len(epoch) - 1)
        labels = np.concatenate([labels for _, labels in epoch])
        numbers = np.concatenate([x[:, 0, 0, 0] + 256 * x[:, 0, 1, 0] for x, _ in epoch])
        np.testing.assert_array_equal(np.sort(labels), np.arange(N))
        np.testing.assert_array_equal(numbers, labels)
        if seed is None:
            np.testing.assert_array_equal(labels, np.arange(N))


@given(seed=st.integers(0, 2**32 - 1))
def test_same_seed_same_bits_and_every_epoch_its_own_order(seed):
    split = numbered_split(50)
    first, second = (
        Batches(split, 8, rng=np.random.default_rng(seed), augment=RandomShift(1)) for _ in range(2)
    )
    epochs = []
    for _ in range(2):
        for (x, labels), (x2, labels2) in zip(first, second, strict=True):
            np.testing.assert_array_equal(x, x2)
            np.testing.assert_array_equal(labels, labels2)
        epochs.append(np.concatenate([labels for _, labels in first]))
        list(second)
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("C", [1, 3])
def test_normalisation_by_hand(C):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, C), dtype=np.uint8)
    mean, std = np.linspace(0.2, 0.6, C), np.linspace(0.5, 0.25, C)
    ((x, labels),) = Batches(Split(images, np.zeros(5, np.uint8)), 5, mean=mean, std=std)
    assert x.dtype == np.float32 and x.flags.c_contiguous and labels.dtype == np.int64
    np.testing.assert_allclose(x, (images / 255 - mean) / std, rtol=1e-6, atol=1e-6)


def test_scaled_pixels_reach_from_0_to_1():
    images = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1)
    ((x, _),) = Batches(Split(images, np.zeros(2, int)), 2)
    assert x.ravel().tolist() == [0.0, 1.0]


def test_raw_pixels_on_request():
    images = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    ((x, _),) = Batches(Split(images, np.zeros(256, int)), 256, scale=1)
    np.testing.assert_array_equal(x.ravel(), np.arange(256))


def test_raw_batches_are_those_before_the_normalisation():
    batches = Batches(numbered_split(7), 3, mean=0.5, std=0.25)
    for (x, labels), (images, same_labels) in zip(batches, batches.raw(), strict=True):
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(labels, same_labels)
        expected = (images / 255 - 0.5) / 0.25
        np.testing.assert_allclose(x, expected, rtol=1e-5)
        factor, offset = (a.reshape(images.shape[1:]) for a in (batches.factor, batches.offset))
        np.testing.assert_allclose(x, images * factor + offset, atol=1e-6)


def test_batches_can_be_kept_and_written_to():
    split = numbered_split(10)
    epoch = list(Batches(split, 4))
    for x, labels in epoch:
        x += 1
        labels += 1
    np.testing.assert_array_equal(split.labels, np.arange(10))
    assert not any(np.shares_memory(a, b) for (a, _) in epoch for (b, _) in epoch if a is not b)


def test_augmentation_gets_uint8_and_leaves_the_split_alone():
    split = numbered_split(6)
    before = split.images.copy()
    seen = []

    def darken(images, rng):
        seen.append(images.dtype)
        images[:] = 0
        return images

    for x, _ in Batches(split, 4, rng=np.random.default_rng(0), augment=darken):
        assert not x.any()
    assert seen == [np.uint8, np.uint8]
    np.testing.assert_array_equal(split.images, before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"split": np.zeros((2, 2))}, TypeError, "split is a ndarray, accepted is a Split"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.0}, ValueError, "batch_size must be a whole number"),
        ({"batch_size": True}, ValueError, "batch_size must be a whole number"),
        ({"rng": 3}, TypeError, "rng is 3, accepted is None or a generator"),
        ({"augment": RandomShift(1)}, ValueError, "so it needs rng as well"),
        ({"mean": [0.1, 0.2]}, ValueError, r"mean has shape \(2,\), .* each of the 1 channels"),
        ({"std": 0}, ValueError, "std is 0.0, accepted are numbers above 0"),
        ({"scale": np.nan}, ValueError, "scale is nan, accepted are finite numbers"),
    ],
)
def test_bad_arguments_of_batches(arguments, error, message):
    arguments = {"split": numbered_split(3), "batch_size": 2} | arguments
    with pytest.raises(error, match=f"Batches: .*{message}"):
        Batches(**arguments)


IMAGES, LABELS = np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3, np.int64)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[..., 0], LABELS, r"images must be uint8 .* got uint8 of shape \(3, 4, 4\)"),
        (IMAGES.astype(float), LABELS, "images must be uint8 .* got float64"),
        (IMAGES, LABELS[:2], "each image needs one label, got 3 images and 2 labels"),
        (IMAGES, LABELS[:, None], r"labels must be integers .* got int64 of shape \(3, 1\)"),
        (IMAGES, LABELS.astype(float), "labels must be integers .* got float64"),
        (IMAGES[:0], LABELS[:0], "the data set is empty"),
    ],
)
def test_bad_splits(images, labels, message):
    with pytest.raises(DataError, match=f"Split: {message}"):
        Split(images, labels)


def test_bad_datasets():
    good, bad = Split(IMAGES, LABELS), Split(IMAGES, LABELS + 2)
    with pytest.raises(DataError, match="toy: a test label is 2, accepted are 0 to 1"):
        Dataset(good, bad, ("a", "b"), "toy")
    with pytest.raises(DataError, match="toy: a train label is -1, accepted are 0 to 1"):
        Dataset(Split(IMAGES, LABELS - 1), good, ("a", "b"), "toy")
    with pytest.raises(DataError, match=r"training images have shape \(4, 4, 1\), .* \(4, 3, 1\)"):
        Dataset(good, Split(IMAGES[:, :, :3], LABELS), ("a",), "toy")
