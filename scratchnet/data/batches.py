"""Batches: the images in groups, as float32, in file order or shuffled."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from scratchnet.backends.host import normalised
from scratchnet.checks import check_whole
from scratchnet.data.augment import Augmentation
from scratchnet.data.dataset import Split


class Batches:
    """Go through a split once in batches of (x, labels); iterate again for the next epoch.

    x = (images * scale - mean) / std

    x       (B, H, W, C)  float32   a new array each time, so that batches can be kept
    labels  (B,)          int64
    B is batch_size, in the last batch what remains. The split itself stays uint8: only the batch at
    hand is converted.

    rng        shuffles, anew at each pass, and seeds `augment`; None keeps the order of the split
    augment    a function of (images uint8, rng), such as those of scratchnet.data.augment
    mean, std  numbers or one per channel, in the units of images * scale
    raises     TypeError, ValueError  an argument that cannot be used, when Batches is made
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        rng: np.random.Generator | None = None,
        augment: Augmentation | None = None,
        scale: float = 1 / 255,
        mean: ArrayLike | None = None,
        std: ArrayLike | None = None,
    ):
        if not isinstance(split, Split):
            raise TypeError(f"Batches: split is a {type(split).__name__}, accepted is a Split")
        check_whole("Batches", "batch_size", batch_size)
        if rng is not None and not isinstance(rng, np.random.Generator):
            raise TypeError(
                f"Batches: rng is {rng!r}, accepted is None or a generator such as "
                f"numpy.random.default_rng(0)"
            )
        if augment is not None and rng is None:
            raise ValueError("Batches: augment draws random numbers, so it needs rng as well")
        self.split = split
        self.batch_size = int(batch_size)
        self.rng = rng
        self.augment = augment
        H, W, C = split.images.shape[1:]
        scale = _per_channel("scale", scale, C)
        mean = _per_channel("mean", 0 if mean is None else mean, C)
        std = _per_channel("std", 1 if std is None else std, C)
        if not (std > 0).all():
            raise ValueError(f"Batches: std is {std.tolist()}, accepted are numbers above 0")
        # One multiplication and one addition for each element instead of three passes, the numbers
        # laid out as an image is: broadcasting over three channels is ten times slower.
        self.factor = np.broadcast_to(scale / std, (H, W, C)).astype(np.float32).ravel()
        self.offset = np.broadcast_to(-mean / std, (H, W, C)).astype(np.float32).ravel()

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for images, labels in self.raw():
            yield normalised(images, self.factor, self.offset), labels

    def raw(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same with images as they are, for who computes x = images * factor + offset."""
        N = len(self.split)
        order = None if self.rng is None else self.rng.permutation(N)
        for start in range(0, N, self.batch_size):
            batch = slice(start, start + self.batch_size)
            chosen = batch if order is None else order[batch]
            images = self.split.images[chosen]
            if self.augment is not None:
                images = self._augmented(images)
            yield images, self.split.labels[chosen].copy()

    def _augmented(self, images: np.ndarray) -> np.ndarray:
        changed = self.augment(images, self.rng)
        if not isinstance(changed, np.ndarray) or changed.shape != images.shape:
            got = getattr(changed, "shape", type(changed).__name__)
            raise ValueError(
                f"Batches: augment must return images of shape {images.shape}, it returned {got}"
            )
        return changed


def _per_channel(name: str, value: ArrayLike, channels: int) -> np.ndarray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"Batches: {name} is {value!r}, accepted are numbers") from None
    if array.shape not in ((), (1,), (channels,)):
        raise ValueError(
            f"Batches: {name} has shape {array.shape}, accepted are one number "
            f"or one for each of the {channels} channels"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"Batches: {name} is {array.tolist()}, accepted are finite numbers")
    return array
