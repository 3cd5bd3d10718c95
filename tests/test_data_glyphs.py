"""The embedded digits: their bits, their splits, their cache."""

import numpy as np
import pytest

from scratchnet import data
from scratchnet.data import glyphs


@pytest.fixture(scope="module")
def small():
    return glyphs.make(train=600, test=200, progress=False)


def test_shapes_and_classes(small):
    assert small.train.images.shape == (600, 28, 28, 1)
    assert small.test.images.shape == (200, 28, 28, 1)
    assert small.classes == tuple("0123456789") and small.name == "glyphs"
    assert np.bincount(small.train.labels).tolist() == [60] * 10
    assert np.bincount(small.test.labels).tolist() == [20] * 10


def test_same_seed_same_bits_another_seed_others(small):
    again = glyphs.make(train=600, test=200, progress=False)
    np.testing.assert_array_equal(again.train.images, small.train.images)
    np.testing.assert_array_equal(again.test.images, small.test.images)
    np.testing.assert_array_equal(again.train.labels, small.train.labels)
    other = glyphs.make(train=600, test=200, seed=1, progress=False)
    assert (other.train.images != small.train.images).any()
    assert (other.train.labels != small.train.labels).any()


def test_the_test_split_does_not_depend_on_the_training_count(small):
    other = glyphs.make(train=10, test=200, progress=False)
    np.testing.assert_array_equal(other.test.images, small.test.images)


def test_fonts_of_the_test_split_are_not_seen_in_training():
    assert not set(glyphs.TRAIN_FONTS) & set(glyphs.TEST_FONTS)
    assert len(set(glyphs.TRAIN_FONTS)) == 16 and len(set(glyphs.TEST_FONTS)) == 6


def test_the_splits_draw_from_streams_of_their_own():
    """From one stream, equal counts would give both splits the same digits and warps."""
    dataset = glyphs.make(train=100, test=100, progress=False)
    assert (dataset.train.labels != dataset.test.labels).mean() > 0.5


def test_no_image_comes_twice(small):
    images = np.concatenate([small.train.images, small.test.images]).reshape(800, -1)
    assert len(np.unique(images, axis=0)) == 800


def test_each_image_shows_a_digit_inside_the_frame(small):
    images = small.train.images[..., 0] / 255
    inside = images[:, 4:24, 4:24].max(axis=(1, 2))
    border = np.concatenate([images[:, 0], images[:, -1]], axis=1).mean(axis=1)
    assert (inside > 0.45).all()
    assert (border < 0.35).all()
    spread = images.std(axis=(1, 2))
    assert spread.min() > 0.05


@pytest.mark.parametrize("font", glyphs.TRAIN_FONTS + glyphs.TEST_FONTS)
def test_distance_maps_hold_digits_with_their_holes(font):
    maps = glyphs._distance_maps(font)
    assert maps.dtype == np.float32 and np.isfinite(maps).all()
    rows = np.flatnonzero((maps[3] > 0).any(axis=1))
    cells = (glyphs.MAP_SIDE - 1) / (2 * glyphs.EXTENT)
    assert abs(rows.size - cells) <= 2  # a digit is one unit high
    border = np.concatenate([maps[:, 0], maps[:, -1], maps[:, :, 0], maps[:, :, -1]], axis=1)
    assert border.max() < -0.1
    # From the centre of an 8 leftwards and rightwards there is a stroke; its upper hole is a hole.
    ink = maps[8] > 0
    crossings = np.abs(np.diff(ink.astype(int), axis=1)).sum(axis=1)
    assert (crossings >= 4).sum() > cells / 4


def test_distance_is_measured_from_the_outline():
    square = np.array([[0, 0], [0, 2], [2, 2], [2, 0], [0, 0]], float)
    hole = np.array([[0.5, 0.5], [1.5, 0.5], [1.5, 1.5], [0.5, 1.5], [0.5, 0.5]])
    distance = glyphs._signed_distance([square, hole])
    axis = np.linspace(-glyphs.EXTENT, glyphs.EXTENT, glyphs.MAP_SIDE)
    x, y = np.meshgrid(axis, axis)
    # Scaled to height 1: a ring between squares of half-width 0.5 and 0.25.
    radius = np.maximum(np.abs(x), np.abs(y))

    def outside(half):
        """Distance to a square, 0 within."""
        return np.hypot(np.clip(np.abs(x) - half, 0, None), np.clip(np.abs(y) - half, 0, None))

    expected = np.select(
        [radius > 0.5, radius > 0.25],
        [-outside(0.5), np.minimum(0.5 - radius, outside(0.25))],
        radius - 0.25,
    )
    ring = (radius > 0.25) & (radius <= 0.5)
    assert (distance[ring] > 0).all() and (distance[~ring] < 0).all()
    np.testing.assert_allclose(distance, expected, atol=1e-3)


def test_the_cache_is_used_and_keyed(tmp_path, small):
    first = glyphs.load(tmp_path, train=600, test=200, progress=False)
    np.testing.assert_array_equal(first.train.images, small.train.images)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    again = glyphs.load(tmp_path, train=600, test=200, progress=False)
    assert path.stat().st_mtime_ns == written
    np.testing.assert_array_equal(again.test.images, small.test.images)
    other = glyphs.load(tmp_path, train=600, test=200, seed=1, progress=False)
    assert (other.train.images != first.train.images).any()
    assert len(list(tmp_path.iterdir())) == 2


def test_load_by_name_puts_the_cache_under_the_root(tmp_path):
    dataset = data.load("glyphs", tmp_path, train=30, test=20)
    assert (len(dataset.train), len(dataset.test)) == (30, 20)
    assert [path.suffix for path in (tmp_path / "glyphs").iterdir()] == [".npz"]
    assert data.is_present("glyphs", tmp_path)


def damage_truncate(content):
    return content[: len(content) // 2]


def damage_flip_a_bit(content):
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


def damage_empty(content):
    return b""


def damage_no_zip(content):
    return b"not a zip file at all"


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_flip_a_bit, damage_empty, damage_no_zip]
)
def test_a_damaged_cache_is_remade(tmp_path, small, damage):
    path = tmp_path / f"glyphs-v{glyphs.VERSION}-600-200-seed0.npz"
    glyphs._write_cache(path, small)
    path.write_bytes(damage(path.read_bytes()))
    again = glyphs.load(tmp_path, train=600, test=200, progress=False)
    np.testing.assert_array_equal(again.train.images, small.train.images)
    assert list(tmp_path.iterdir()) == [path]
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["train_images"], small.train.images)


def test_a_cache_of_another_count_is_remade(tmp_path, small):
    glyphs._write_cache(tmp_path / f"glyphs-v{glyphs.VERSION}-30-10-seed0.npz", small)
    assert len(glyphs.load(tmp_path, train=30, test=10, progress=False).train) == 30


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, small):
    def interrupted(*args, **arrays):
        args[0].write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        glyphs._write_cache(tmp_path / "glyphs.npz", small)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path):
    blocked = tmp_path / "glyphs"
    blocked.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="glyphs cannot be cached there"):
        dataset = glyphs.load(blocked, train=20, test=10, progress=False)
    assert len(dataset.train) == 20


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train": 0}, ValueError, "glyphs: train must be a whole number of at least 1, got 0"),
        ({"test": 2.5}, ValueError, "glyphs: test must be a whole number"),
        ({"seed": -1}, ValueError, "glyphs: seed must be a whole number of at least 0, got -1"),
    ],
)
def test_bad_arguments(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        glyphs.load(tmp_path, **arguments)


def test_a_missing_font_is_named():
    with pytest.raises(data.DataError, match="Comic.ttf is missing from matplotlib"):
        glyphs._distance_maps("Comic")


def test_hard_for_a_linear_classifier_but_not_hopeless():
    """Ridge regression on the pixels must be well above chance and well below 95 %."""
    dataset = glyphs.make(train=3000, test=1000, progress=False)
    x, x_test = (
        split.images.reshape(len(split), -1) / 255 for split in (dataset.train, dataset.test)
    )
    mean = x.mean(axis=0)
    x, x_test = x - mean, x_test - mean
    targets = np.eye(10)[dataset.train.labels] - 0.1
    weight = np.linalg.solve(x.T @ x + 30 * np.eye(784), x.T @ targets)
    accuracy = ((x_test @ weight).argmax(axis=1) == dataset.test.labels).mean()
    assert 0.6 < accuracy < 0.92
