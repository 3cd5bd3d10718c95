"""Images with their labels, and a data set made of two such splits."""

from dataclasses import dataclass

import numpy as np

from scratchnet.data.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images and their labels, in one order.

    images  (N, H, W, C)  uint8   0 is black
    labels  (N,)          int64   any integer dtype is accepted and converted
    raises  DataError     another rank or dtype, different lengths, or no image at all
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        if images.ndim != 4 or images.dtype != np.uint8:
            raise DataError(
                f"Split: images must be uint8 of shape (N, H, W, C), "
                f"got {images.dtype} of shape {images.shape}"
            )
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"Split: labels must be integers of shape (N,), "
                f"got {labels.dtype} of shape {labels.shape}"
            )
        if len(images) != len(labels):
            raise DataError(
                f"Split: each image needs one label, got {len(images)} images "
                f"and {len(labels)} labels"
            )
        if images.size == 0:
            raise DataError(f"Split: the data set is empty, images have shape {images.shape}")
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        N, H, W, C = self.images.shape
        return f"Split({N} images of {H} x {W} x {C})"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split that share their classes; a label is an index into `classes`.

    raises  DataError  a label has no class, or the two splits differ in image shape
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        for split_name, split in (("train", self.train), ("test", self.test)):
            smallest, largest = int(split.labels.min()), int(split.labels.max())
            if smallest < 0 or largest >= len(self.classes):
                wrong = smallest if smallest < 0 else largest
                raise DataError(
                    f"{self.name}: a {split_name} label is {wrong}, "
                    f"accepted are 0 to {len(self.classes) - 1}"
                )
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise DataError(
                f"{self.name}: training images have shape {self.train.images.shape[1:]}, "
                f"test images {self.test.images.shape[1:]}; they must be equal"
            )
