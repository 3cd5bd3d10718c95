"""load: from a name to a data set, wherever it lies."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from scratchnet.data import glyphs
from scratchnet.data.dataset import Dataset, Split
from scratchnet.data.download import fetch
from scratchnet.data.errors import DataError
from scratchnet.data.sources import SOURCES, Source

NAMES = ("glyphs", *SOURCES)


def data_root(root: str | Path | None = None) -> Path:
    """The folder of the data sets: `root`, else $SCRATCHNET_DATA, else the platform's cache."""
    if root is not None:
        if not isinstance(root, str | os.PathLike):
            raise TypeError(f"root must be a folder's path, got {root!r}")
        return _expanded(root, "root")
    if os.environ.get("SCRATCHNET_DATA"):
        return _expanded(os.environ["SCRATCHNET_DATA"], "SCRATCHNET_DATA")
    import pooch  # slow to import, and seldom needed

    return Path(pooch.os_cache("scratchnet"))


def _expanded(path: str | Path, name: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~somebody
        raise DataError(f"{name} is {str(path)!r}, and nobody's home is found for it") from None


def is_present(
    name: str, root: str | Path | None = None, *, sources: Mapping[str, Source] = SOURCES
) -> bool:
    """Whether load(name, root) works without a download. Glyphs always do."""
    _check_name(name, sources)
    if name == "glyphs":
        return True
    folder = data_root(root) / sources[name].folder
    return all(file.is_in(folder) for file in sources[name].files)


def load(
    name: str,
    root: str | Path | None = None,
    *,
    train: int | None = None,
    test: int | None = None,
    progress: bool = True,
    sources: Mapping[str, Source] = SOURCES,
) -> Dataset:
    """Load a data set; files that are missing from its folder under `root` are downloaded into it.

    name         glyphs, mnist, fashion-mnist or cifar10
    root         default: $SCRATCHNET_DATA, else the platform's cache folder
    train, test  how many images: drawn to order for glyphs (default 12,000 and 2,000),
                 the first ones of the other sets (default all)
    progress     show a bar while downloading or drawing, on a terminal only
    sources      the table of addresses and hashes
    raises       DataError  a file is damaged, or is missing and cannot be downloaded
                 ValueError, TypeError  a name or a count that is not accepted
    """
    _check_name(name, sources)
    folder = data_root(root) / (name if name == "glyphs" else sources[name].folder)
    if name == "glyphs":
        return glyphs.load(
            folder,
            train=glyphs.TRAIN if train is None else train,
            test=glyphs.TEST if test is None else test,
            progress=progress,
        )
    source = sources[name]
    fetch(source, folder, progress)
    train_split, test_split = source.read(folder)
    return Dataset(
        _first(train_split, train, f"{name}: train"),
        _first(test_split, test, f"{name}: test"),
        classes=source.classes,
        name=name,
    )


def _check_name(name: str, sources: Mapping[str, Source]) -> None:
    if name not in ("glyphs", *sources):
        raise DataError(f"{name!r} is no data set, accepted are {', '.join(('glyphs', *sources))}")


def _first(split: Split, count: int | None, argument: str) -> Split:
    if count is None:
        return split
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        raise TypeError(f"{argument} is {count!r}, accepted is an int")
    if not 1 <= count <= len(split):
        raise ValueError(f"{argument} is {count}, accepted are 1 to {len(split)}")
    # Copied, so that a few images do not keep all in memory.
    return Split(split.images[:count].copy(), split.labels[:count].copy())
