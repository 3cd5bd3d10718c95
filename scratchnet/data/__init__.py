"""The data floor: load a data set by name, cut it into batches, augment it.

dataset = load("glyphs")
for x, labels in Batches(dataset.train, 128, rng=np.random.default_rng(0)): ...
"""

from scratchnet.data.augment import (
    Compose,
    Cutout,
    RandomAffine,
    RandomCrop,
    RandomFlip,
    RandomShift,
)
from scratchnet.data.batches import Batches
from scratchnet.data.dataset import Dataset, Split
from scratchnet.data.errors import DataError
from scratchnet.data.loading import NAMES, data_root, is_present, load

__all__ = [
    "NAMES",
    "Batches",
    "Compose",
    "Cutout",
    "DataError",
    "Dataset",
    "RandomAffine",
    "RandomCrop",
    "RandomFlip",
    "RandomShift",
    "Split",
    "data_root",
    "is_present",
    "load",
]
