"""Augmentations: what each may do to an image, and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchnet.data import Compose, Cutout, RandomAffine, RandomCrop, RandomFlip, RandomShift

SHAPES = st.tuples(
    st.integers(1, 5), st.integers(4, 9), st.integers(4, 9), st.integers(1, 3)
)  # N, H, W, C
SEEDS = st.integers(0, 2**32 - 1)
DTYPES = st.sampled_from([np.uint8, np.float32])
AUGMENTATIONS = [
    RandomShift(2),
    RandomCrop(3),
    RandomAffine(10, 1.2, 1),
    RandomFlip(),
    Cutout(3),
    Compose(RandomCrop(2), RandomFlip(), Cutout(2)),
]


def random_images(shape, seed, dtype=np.uint8):
    """No pixel is 0, so that a 0 shows where an augmentation put one."""
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8).astype(dtype)


@pytest.mark.parametrize("augment", AUGMENTATIONS, ids=repr)
@given(shape=SHAPES, seed=SEEDS, dtype=DTYPES)
def test_shape_dtype_and_determinism(augment, shape, seed, dtype):
    images = random_images(shape, seed, dtype)
    before = images.copy()
    once = augment(images, np.random.default_rng(seed))
    again = augment(images, np.random.default_rng(seed))
    assert once.shape == images.shape and once.dtype == dtype
    assert not np.shares_memory(once, images)
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("augment", AUGMENTATIONS, ids=repr)
def test_each_image_draws_its_own(augment):
    images = np.repeat(random_images((1, 8, 8, 1), 0), 64, axis=0)
    changed = augment(images, np.random.default_rng(0))
    assert len(np.unique(changed.reshape(64, -1), axis=0)) > 1


@given(shape=SHAPES, seed=SEEDS, pixels=st.integers(1, 5))
def test_a_shift_is_a_shift(shape, seed, pixels):
    images = random_images(shape, seed)
    for before, after in zip(
        images, RandomShift(pixels)(images, np.random.default_rng(seed)), strict=True
    ):
        H, W, C = before.shape
        canvas = np.zeros((H + 2 * pixels, W + 2 * pixels, C), np.uint8)
        canvas[pixels : pixels + H, pixels : pixels + W] = before
        assert any(
            np.array_equal(after, canvas[r : r + H, s : s + W])
            for r in range(2 * pixels + 1)
            for s in range(2 * pixels + 1)
        )


def test_shifts_reach_every_offset_equally():
    images = np.zeros((9000, 5, 5, 1), np.uint8)
    images[:, 2, 2] = 1
    mean = RandomShift(1)(images, np.random.default_rng(0)).mean(axis=0)[..., 0]
    np.testing.assert_allclose(mean[1:4, 1:4], 1 / 9, atol=0.02)
    assert mean[0].max() == mean[4].max() == 0


@given(shape=SHAPES, seed=SEEDS, padding=st.integers(1, 3))
def test_a_crop_is_a_window_of_the_mirrored_image(shape, seed, padding):
    images = random_images(shape, seed)
    for before, after in zip(
        images, RandomCrop(padding)(images, np.random.default_rng(seed)), strict=True
    ):
        H, W, _ = before.shape
        rows, cols = (
            np.abs((length - 1) - np.abs((length - 1) - np.arange(-padding, length + padding)))
            for length in (H, W)
        )
        mirrored = before[rows][:, cols]
        assert any(
            np.array_equal(after, mirrored[r : r + H, s : s + W])
            for r in range(2 * padding + 1)
            for s in range(2 * padding + 1)
        )


class Drawn:
    """A generator of which the next draw is known: everything at its largest."""

    def uniform(self, low, high, shape):
        return np.full(shape, float(high))


@given(shape=SHAPES, seed=SEEDS, pixels=st.integers(1, 3))
def test_an_affine_map_can_turn_shift_and_zoom(shape, seed, pixels):
    images = random_images(shape, seed)
    H, W = shape[1:3]
    square = images[:, : min(H, W), : min(H, W)]
    np.testing.assert_array_equal(
        RandomAffine(90, 1, 0)(square, Drawn()), np.rot90(square, axes=(2, 1))
    )
    shifted = RandomAffine(0, 1, pixels)(images, Drawn())
    np.testing.assert_array_equal(shifted[:, :-pixels, :-pixels], images[:, pixels:, pixels:])
    assert not shifted[:, H - pixels :].any() and not shifted[:, :, W - pixels :].any()
    ramp = np.broadcast_to(np.arange(9.0)[:, None, None], (9, 9, 1))[None]
    halved = RandomAffine(0, 2, 0)(ramp, Drawn())[0, :, :, 0]
    np.testing.assert_allclose(halved[2:7, 2:7], 4 + 2 * (ramp[0, 2:7, 2:7, 0] - 4))
    assert not halved[[0, 1, 7, 8]].any()


def test_an_affine_map_rounds_whole_numbers_and_only_those():
    images = np.array([[0, 1]]).reshape(1, 1, 2, 1)
    half = RandomAffine(0, 1, 0.5)
    one_row = np.repeat(images, 3, axis=1)
    whole, exact = (half(one_row.astype(dtype), Drawn()) for dtype in (np.uint8, np.float32))
    np.testing.assert_array_equal(exact[0, 0, :, 0], [0.5, 0.5])
    np.testing.assert_array_equal(whole[0, 0, :, 0], [1, 1])


@given(shape=SHAPES, seed=SEEDS)
def test_a_flip_is_the_image_or_its_mirror(shape, seed):
    images = random_images(shape, seed)
    for before, after in zip(
        images, RandomFlip()(images, np.random.default_rng(seed)), strict=True
    ):
        assert np.array_equal(after, before) or np.array_equal(after, before[:, ::-1])


def test_flip_probability():
    images = np.zeros((4000, 1, 2, 1), np.uint8)
    images[:, 0, 0] = 1
    for probability in (0, 0.25, 1):
        flipped = RandomFlip(probability)(images, np.random.default_rng(0))[:, 0, 1, 0].mean()
        assert abs(flipped - probability) < 0.03


@given(shape=SHAPES, seed=SEEDS, size=st.integers(1, 12))
def test_cutout_removes_one_square_and_keeps_the_rest(shape, seed, size):
    images = random_images(shape, seed)
    for before, after in zip(
        images, Cutout(size)(images, np.random.default_rng(seed)), strict=True
    ):
        removed = (after == 0).all(axis=-1)
        rows, cols = removed.any(axis=1), removed.any(axis=0)
        np.testing.assert_array_equal(removed, rows[:, None] & cols[None, :])
        for line in (rows, cols):
            run = np.flatnonzero(line)
            assert (np.diff(run) == 1).all() and 1 <= len(run) <= size
            touches_border = run[0] == 0 or run[-1] == len(line) - 1
            assert len(run) == size or touches_border
        np.testing.assert_array_equal(after[~removed], before[~removed])


def test_compose_applies_its_steps_in_order():
    images = random_images((3, 6, 6, 1), 0)
    composed = Compose(RandomShift(2), Cutout(2))(images, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    np.testing.assert_array_equal(composed, Cutout(2)(RandomShift(2)(images, rng), rng))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: RandomShift(0),
            ValueError,
            "RandomShift: pixels must be a whole number of at least 1, got 0",
        ),
        (lambda: RandomCrop(1.5), ValueError, "RandomCrop: padding must be a whole number"),
        (
            lambda: Cutout(-1),
            ValueError,
            "Cutout: size must be a whole number of at least 1, got -1",
        ),
        (
            lambda: RandomFlip(1.1),
            ValueError,
            "RandomFlip: probability must be a number of at least 0 and at most 1, got 1.1",
        ),
        (lambda: RandomFlip(np.nan), ValueError, "RandomFlip: probability must be a number"),
        (
            lambda: RandomAffine(181, 1, 0),
            ValueError,
            "RandomAffine: degrees must be a number of at least 0 and at most 180, got 181",
        ),
        (
            lambda: RandomAffine(0, 0.9, 0),
            ValueError,
            "RandomAffine: zoom must be a number of at least 1, got 0.9",
        ),
        (lambda: RandomAffine(0, 1, np.nan), ValueError, "RandomAffine: pixels must be a number"),
        (lambda: RandomAffine("a", 1, 0), ValueError, "RandomAffine: degrees must be a number"),
        (lambda: Compose(3), TypeError, "Compose: 3 cannot be called"),
        (
            lambda: RandomCrop(4)(np.zeros((1, 4, 9, 1)), np.random.default_rng(0)),
            ValueError,
            "RandomCrop: padding is 4, accepted for images of 4 x 9 is at most 3",
        ),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_number_of_numpy_does_not_wrap():
    images = random_images((2, 6, 6, 1), 0)
    for number in (200, np.uint8(200)):
        shifted = RandomShift(number)(images, np.random.default_rng(3))
        np.testing.assert_array_equal(shifted, RandomShift(200)(images, np.random.default_rng(3)))


def test_negative_whole_numbers_are_rounded_too():
    images = np.arange(-60, 60, dtype=np.int8).reshape(1, 10, 12, 1)
    still = RandomAffine(0, 1, 0)(images, np.random.default_rng(0))
    np.testing.assert_array_equal(still, images)


def test_one_image_is_no_batch():
    with pytest.raises(ValueError, match=r"must be \(N, H, W, C\), got \(6, 6, 1\)"):
        RandomFlip()(random_images((6, 6, 1), 0), np.random.default_rng(0))
