"""Random changes to a batch of images that leave its labels true.

Each is called as augment(images, rng): images (N, H, W, C) of any dtype -> a new array of the same
shape and dtype. All randomness comes from the numpy.random.Generator `rng`; each image draws its
own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from scratchnet.checks import check_number, check_whole

Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class RandomShift:
    """Move each image by up to `pixels` rows and columns; the cells it leaves become 0.

    The same as a random crop of the image padded with `pixels` zeros on each side.
    Source: He et al. 2016, section 4.2, for 4 pixels.
    """

    pixels: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", check_whole("RandomShift", "pixels", self.pixels))

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _random_window(images, rng, self.pixels, mode="constant")


@dataclass(frozen=True)
class RandomCrop:
    """Pad each side by `padding` mirrored pixels, cut out a window of the image's own size.

    The mirror stands on the edge pixel, which is not repeated: c b a b c.
    For photographs, where a black border would be a shape of its own.
    """

    padding: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "padding", check_whole("RandomCrop", "padding", self.padding))

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.padding >= min(images.shape[1:3]):
            raise ValueError(
                f"RandomCrop: padding is {self.padding}, accepted for images of "
                f"{images.shape[1]} x {images.shape[2]} is at most {min(images.shape[1:3]) - 1}"
            )
        return _random_window(images, rng, self.padding, mode="reflect")


@dataclass(frozen=True)
class RandomAffine:
    """Turn each image about its centre, zoom and move it, each by up to so much either way.

    degrees   of the turn, up to 180
    zoom      the largest factor, above 1; the smallest is its inverse
    pixels    of the shift along rows and columns

    Values between pixels are interpolated in both directions; beyond the border they are 0. For
    handwriting, whose slant and size are the hand's. Source: Simard et al. 2003, "Best practices
    for convolutional neural networks", section 2.
    """

    degrees: float
    zoom: float
    pixels: float

    def __post_init__(self) -> None:
        check_number("RandomAffine", "degrees", self.degrees, 0, 180)
        check_number("RandomAffine", "zoom", self.zoom, 1)
        check_number("RandomAffine", "pixels", self.pixels, 0)

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        turn, zoom, down, right = rng.uniform(-1, 1, (4, len(images), 1, 1))
        turn, zoom = np.deg2rad(self.degrees * turn), self.zoom**zoom
        cos, sin = zoom * np.cos(turn), zoom * np.sin(turn)
        H, W = images.shape[1:3]
        y, x = (np.arange(H) - (H - 1) / 2)[:, None], np.arange(W) - (W - 1) / 2
        # Where each pixel lay: (N, H, W).
        rows = cos * y - sin * x + self.pixels * down + (H - 1) / 2
        columns = sin * y + cos * x + self.pixels * right + (W - 1) / 2
        return _interpolated(images, rows, columns)


@dataclass(frozen=True)
class RandomFlip:
    """Swap left and right of each image with the given probability."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        check_number("RandomFlip", "probability", self.probability, 0, 1)

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if images.ndim != 4:
            raise ValueError(f"RandomFlip: images must be (N, H, W, C), got {images.shape}")
        flipped = images.copy()
        chosen = rng.random(len(images)) < self.probability
        flipped[chosen] = images[chosen, :, ::-1]
        return flipped


@dataclass(frozen=True)
class Cutout:
    """Set a square of `size` x `size` pixels, centred on a random pixel of each image, to 0.

    The part of the square beyond the border is lost. Source: DeVries and Taylor 2017, section 3.
    """

    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", check_whole("Cutout", "size", self.size))

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        N, H, W, C = images.shape
        rows = self._covers(rng.integers(0, H, N), H)
        cols = self._covers(rng.integers(0, W, N), W)
        covered = rows[:, :, None] & cols[:, None, :]
        return images * np.repeat(~covered, C, axis=2).reshape(images.shape)

    def _covers(self, centre: np.ndarray, length: int) -> np.ndarray:
        first = (centre - self.size // 2)[:, None]
        index = np.arange(length)
        return (index >= first) & (index < first + self.size)


class Compose:
    """Apply augmentations one after the other, all drawing from the same generator."""

    def __init__(self, *steps: Augmentation):
        for step in steps:
            if not callable(step):
                raise TypeError(f"Compose: {step!r} cannot be called as step(images, rng)")
        self.steps = steps

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for step in self.steps:
            images = step(images, rng)
        return images

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.steps))})"


def _random_window(
    images: np.ndarray, rng: np.random.Generator, margin: int, mode: str
) -> np.ndarray:
    N, H, W, C = images.shape
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode)
    top, left = rng.integers(0, 2 * margin + 1, (2, N))
    # runs[n, r, s] is the row of W pixels that starts at pixel (r, s): picking whole runs is much
    # faster than picking pixels.
    rows_of_elements = padded.reshape(N, H + 2 * margin, (W + 2 * margin) * C)
    runs = sliding_window_view(rows_of_elements, W * C, axis=2)[:, :, ::C]
    rows = top[:, None] + np.arange(H)
    return runs[np.arange(N)[:, None], rows, left[:, None]].reshape(N, H, W, C)


def _interpolated(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The images' values at rows and columns (N, H, W) between pixels, 0 beyond the border."""
    N, H, W, C = images.shape
    whole = np.issubdtype(images.dtype, np.integer)
    values = np.full(images.shape, 0.5 if whole else 0.0)  # whole numbers are rounded
    first_row, first_column = np.floor(rows), np.floor(columns)
    n = np.arange(N)[:, None, None]
    for r, of_row in ((first_row, first_row + 1 - rows), (first_row + 1, rows - first_row)):
        for s, of_column in (
            (first_column, first_column + 1 - columns),
            (first_column + 1, columns - first_column),
        ):
            inside = (0 <= r) & (r < H) & (0 <= s) & (s < W)
            places = np.where(inside, r, 0).astype(int), np.where(inside, s, 0).astype(int)
            share = np.where(inside, of_row * of_column, 0.0)
            values += share[..., None] * images[n, *places]
    return (np.floor(values) if whole else values).astype(images.dtype)
