"""Glyphs: digits drawn from matplotlib's own fonts, the data set that needs no download.

Each digit of each font becomes a signed distance map once: how far inside (+) or outside (-) the
outline a point lies. An image samples that map at 28 x 28 warped points, so that thickness is a
number added to the distance, and the edge stays smooth at every scale. Training and test split
share neither a font nor a random stream.
"""

import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scratchnet.checks import check_whole
from scratchnet.data.dataset import Dataset, Split
from scratchnet.data.errors import DataError
from scratchnet.files import replacing

VERSION = 1  # of the pixels: raise it with any change to them, so that no cache survives it
TRAIN, TEST = 12_000, 2_000
SIDE = 28
CLASSES = tuple("0123456789")
TRAIN_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique"),
    "DejaVuSansMono-BoldOblique",
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("cmr10", "cmb10", "cmmi10", "cmti10"),
)
TEST_FONTS = (
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmss10", "cmtt10"),
)

# Lengths of a glyph are in digit heights: an upright digit reaches from -0.5 to 0.5.
EXTENT = 0.75  # the distance map covers -EXTENT to EXTENT: its border is outside every digit
MAP_SIDE = 96
CHUNK = 500  # images warped at once


def load(
    folder: str | Path,
    train: int = TRAIN,
    test: int = TEST,
    seed: int = 0,
    progress: bool = True,
) -> Dataset:
    """The glyphs from the cache in `folder`, or made and cached there.

    A cache that is damaged is made anew; where the folder cannot be written, a warning says so.
    """
    _check_counts(train, test, seed)
    path = Path(folder) / f"glyphs-v{VERSION}-{train}-{test}-seed{seed}.npz"
    cached = _read_cache(path, train, test)
    if cached is not None:
        return cached
    dataset = make(train, test, seed, progress)
    try:
        _write_cache(path, dataset)
    except OSError as error:
        warnings.warn(
            f"{path}: the glyphs cannot be cached there ({error.strerror or error}), "
            f"so they are made anew each time",
            stacklevel=2,
        )
    return dataset


def make(train: int = TRAIN, test: int = TEST, seed: int = 0, progress: bool = True) -> Dataset:
    """Draw the glyphs: (N, 28, 28, 1) uint8, light on dark, the classes in equal parts.

    Each image has its own font, rotation, shear, scale, width, position, thickness, elastic warp,
    softness, contrast and noise. The same arguments give the same bits.

    raises  DataError  a font is missing from this matplotlib
            TypeError, ValueError  a count below 1 or a seed below 0
    """
    _check_counts(train, test, seed)
    streams = np.random.SeedSequence(seed).spawn(2)
    with tqdm(
        total=train + test,
        desc="drawing glyphs",
        unit="image",
        leave=False,
        disable=None if progress else True,  # None: shown on a terminal only
    ) as bar:
        splits = [
            _draw_split(count, fonts, np.random.default_rng(stream), bar)
            for count, fonts, stream in zip(
                (train, test), (TRAIN_FONTS, TEST_FONTS), streams, strict=True
            )
        ]
    return Dataset(*splits, classes=CLASSES, name="glyphs")


def _draw_split(count: int, fonts: tuple[str, ...], rng: np.random.Generator, bar: tqdm) -> Split:
    maps = np.stack([_distance_maps(font) for font in fonts])
    labels = rng.permutation(np.arange(count) % len(CLASSES))
    images = np.empty((count, SIDE, SIDE, 1), np.uint8)
    for start in range(0, count, CHUNK):
        chunk = slice(start, start + CHUNK)
        font = rng.integers(len(fonts), size=len(labels[chunk]))
        images[chunk, :, :, 0] = _draw(maps, font, labels[chunk], rng)
        bar.update(len(font))
    return Split(images, labels)


def _draw(
    maps: np.ndarray, font: np.ndarray, digit: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Warped images (N, 28, 28) uint8 of maps[font[n], digit[n]]."""
    N = len(digit)

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (N, 1, 1)).astype(np.float32)

    height = uniform(16, 21)  # pixels
    width = height * uniform(0.8, 1.15)
    angle = uniform(-0.25, 0.25)  # radians
    shear = uniform(-0.25, 0.25)
    thickness = uniform(-0.008, 0.045)  # digit heights, added on each side of a stroke
    softness = uniform(1.0, 2.2)  # pixels from black to white across an edge
    shift_x, shift_y = uniform(-1.5, 1.5), uniform(-1.5, 1.5)
    warp_x, warp_y = _elastic(rng, N, uniform(0, 1.2))

    centred = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    px = centred[None, None, :] - shift_x + warp_x
    py = centred[None, :, None] - shift_y + warp_y
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = cos * px + sin * py, cos * py - sin * px
    distance = _sample(maps, font, digit, (x + shear * y) / width, y / height)

    ink = np.clip(0.5 + (distance + thickness) * height / softness, 0, 1)
    noise = rng.standard_normal((N, SIDE, SIDE), dtype=np.float32) * uniform(0.02, 0.1)
    grey = uniform(0, 0.1) + ink * uniform(0.55, 0.85) + noise
    return np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)


def _elastic(
    rng: np.random.Generator, N: int, strength: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Smooth displacements in pixels, (N, 28, 28) each: cubic B-splines over 5 x 5 random knots."""
    knots = 5
    position = np.linspace(1, knots - 2, SIDE)  # every pixel lies between four knots
    offset = np.abs(position[:, None] - np.arange(knots))
    basis = np.where(
        offset < 1,
        2 / 3 - offset**2 + offset**3 / 2,
        np.clip(2 - offset, 0, None) ** 3 / 6,
    ).astype(np.float32)
    fields = rng.standard_normal((2, N, knots, knots), dtype=np.float32) * 2 * strength
    return tuple(basis @ fields @ basis.T)


def _sample(
    maps: np.ndarray, font: np.ndarray, digit: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Bilinear values of maps[font[n], digit[n]] at x, y (N, 28, 28), all in digit heights."""
    to_cell = (MAP_SIDE - 1) / (2 * EXTENT)
    # Beyond the border the border's value stands: negative, so black.
    col = np.clip((x + EXTENT) * to_cell, 0, MAP_SIDE - 1.001)
    row = np.clip((y + EXTENT) * to_cell, 0, MAP_SIDE - 1.001)
    j, i = col.astype(np.int32), row.astype(np.int32)
    fx, fy = col - j, row - i
    first = (font * len(CLASSES) + digit) * MAP_SIDE**2
    corner = first.astype(np.int32)[:, None, None] + i * MAP_SIDE + j
    flat = maps.reshape(-1)
    upper = flat[corner] * (1 - fx) + flat[corner + 1] * fx
    lower = flat[corner + MAP_SIDE] * (1 - fx) + flat[corner + MAP_SIDE + 1] * fx
    return upper * (1 - fy) + lower * fy


def _distance_maps(font: str) -> np.ndarray:
    """Signed distances of a font's ten digits (10, MAP_SIDE, MAP_SIDE), in digit heights."""
    # The low-level reader: the usual ways import font_manager, which scans the system's fonts.
    import matplotlib
    from matplotlib.ft2font import FT2Font, LoadFlags
    from matplotlib.path import Path as Outline

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    if not path.is_file():
        raise DataError(
            f"glyphs: the font {path} is missing from matplotlib {matplotlib.__version__}"
        )
    face = FT2Font(str(path))
    face.set_size(100, 72)  # one em is 100 units, so that curves are cut into fine enough segments
    maps = np.empty((len(CLASSES), MAP_SIDE, MAP_SIDE), np.float32)
    for digit, character in enumerate(CLASSES):
        face.load_char(ord(character), flags=LoadFlags.NO_HINTING)
        outline = Outline(*face.get_path())
        outline.should_simplify = False
        maps[digit] = _signed_distance(outline.to_polygons())
    return maps


def _signed_distance(polygons: list[np.ndarray]) -> np.ndarray:
    """Distance of each cell to closed polygons scaled to height 1, positive inside."""
    points = np.concatenate(polygons)
    low, high = points.min(axis=0), points.max(axis=0)
    scale = 1 / (high[1] - low[1])
    starts = (np.concatenate([p[:-1] for p in polygons]) - (low + high) / 2) * scale
    ends = (np.concatenate([p[1:] for p in polygons]) - (low + high) / 2) * scale
    kept = (starts != ends).any(axis=1)
    ax, ay = starts[kept].T.astype(np.float32)[:, :, None, None]
    bx, by = ends[kept].T.astype(np.float32)[:, :, None, None]

    axis = np.linspace(-EXTENT, EXTENT, MAP_SIDE, dtype=np.float32)
    x, y = axis[None, None, :], -axis[None, :, None]  # rows go down, the outline's y goes up
    dx, dy = bx - ax, by - ay
    along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
    square = ((x - ax) - along * dx) ** 2 + ((y - ay) - along * dy) ** 2
    distance = np.sqrt(square.min(axis=0))

    # A point is inside where the outline winds around it: count the segments that cross the ray to
    # its left.
    up, down = (ay <= y) & (by > y), (by <= y) & (ay > y)
    crossing = ax + (y - ay) * dx / np.where(dy == 0, 1, dy)
    winding = np.where(crossing < x, up.astype(np.int8) - down.astype(np.int8), 0).sum(axis=0)
    return np.where(winding != 0, distance, -distance)


def _check_counts(train: int, test: int, seed: int) -> None:
    for name, value, least in (("train", train, 1), ("test", test, 1), ("seed", seed, 0)):
        check_whole("glyphs", name, value, least)


def _read_cache(path: Path, train: int, test: int) -> Dataset | None:
    """The cached data set, or None where there is none or it is not what make() would give."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            splits = [
                Split(arrays[f"{name}_images"], arrays[f"{name}_labels"])
                for name in ("train", "test")
            ]
            cached = Dataset(*splits, classes=CLASSES, name="glyphs")
    except (
        OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error,
    ):  # fmt: skip
        return None
    expected = [(count, SIDE, SIDE, 1) for count in (train, test)]
    return cached if [split.images.shape for split in splits] == expected else None


def _write_cache(path: Path, dataset: Dataset) -> None:
    with replacing(path) as stream:
        np.savez(
            stream,
            train_images=dataset.train.images,
            train_labels=dataset.train.labels,
            test_images=dataset.test.images,
            test_labels=dataset.test.labels,
        )
