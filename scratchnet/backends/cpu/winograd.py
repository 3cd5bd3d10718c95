"""3 x 3 convolution in Winograd's form F(4 x 4, 3 x 3): 36 multiplications for 16 outputs, not 144.

    y tile = A^T [ (G w G^T) * (B^T x B) ] A        x tile (6, 6), w (3, 3), y tile (4, 4)

The product * is elementwise in the tile and, over the channels, a matrix product: 36 of them, of
(tiles, C) by (C, O). Blocks of TILES tiles run through the three steps in scratch that stays in the
second cache. The gradient for w is the transposed chain, G^T [ (B^T x B) * (A dy A^T) ] G, and the
gradient for x is a convolution.

The price is rounding: the transforms cancel, and the error is several times that of the direct sum
(the constants grow with the tile: that is why no larger tile is used). float64 asks for care, and
keeps the direct sum. A NaN or an infinity in x comes out as NaN, in the whole tile.
Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks", section 4.3.
"""

import numpy as np
from numba import get_num_threads, get_thread_id, njit, prange

from scratchnet.backends.cpu.direct import CHUNKS, add_pixels, pad_image, place
from scratchnet.backends.cpu.memory import empty
from scratchnet.backends.cpu.pooling import clear, pool_band, spread_image
from scratchnet.backends.cpu.tiles import COLUMNS, ROWS, linear_map, product_tile
from scratchnet.geometry import Geometry

BT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
AT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
_by_bt, _by_g, _by_at = linear_map(BT), linear_map(G), linear_map(AT)
_by_gt, _by_a = linear_map(tuple(zip(*G, strict=True))), linear_map(tuple(zip(*AT, strict=True)))

LANES = 16  # float32 of a vector
WIDTH = COLUMNS[4]
TILES = 16  # that share a pass over the 36 matrices of weights
GAP = 16  # numbers between two of the 36 planes: else they would fall into the same cache sets


def suits(x: np.ndarray, weight: np.ndarray, geometry: Geometry) -> bool:
    """Whether this form applies to a convolution of stride 1, and saves a third or more."""
    K, _, C, O = weight.shape
    fits = x.dtype == np.float32 and K == 3 and C == x.shape[3] and C % LANES == O % LANES == 0
    return fits and 36 * _tiles(geometry.Ho) * _tiles(geometry.Wo) < 6 * geometry.Ho * geometry.Wo


def _tiles(size: int) -> int:
    return -(-size // 4)


def winograd_convolve(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    geometry: Geometry,
    relu: bool,
    size: int = 0,
    argmax: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """conv2d(x, weight, bias), with a ReLU, and with that a max pool of windows of size, if asked.

    Given an argmax, x is the gradient of such a pooling, and what is convolved is x spread out.
    returns y and, of a pooling, the argmax as conv2d_relu_maxpool2d has it
    """
    N, _, _, C = x.shape
    O = weight.shape[3]
    th, tw = _tiles(geometry.Ho), _tiles(geometry.Wo)
    images = -(-TILES // (th * tw))
    tiles = -(-images * th * tw // ROWS) * ROWS
    Op = -(-O // WIDTH) * WIDTH
    threads = get_num_threads()
    spread = argmax is not None
    pool = size > 0 and not spread
    cell = size if pool else 1
    y = empty((N, geometry.Ho // cell, geometry.Wo // cell, O), x.dtype)
    if not spread:
        argmax = empty(y.shape if pool else (0, 0, 0, 0), np.uint8)
    planes = np.zeros((36, Op // WIDTH, C, WIDTH), x.dtype)
    _transform_weight(np.ascontiguousarray(weight).reshape(-1), O, planes)
    _convolve(
        np.ascontiguousarray(x), geometry.top, geometry.left, planes.reshape(-1),
        np.zeros(O, x.dtype) if bias is None else np.ascontiguousarray(bias), relu, size, spread,
        images, th, tw,
        empty((threads, 4 * th + 2, 4 * tw + 2, C), x.dtype),
        empty((threads, 36 * (tiles * C + GAP)), x.dtype),
        empty((threads, 36 * (tiles * Op + GAP)), x.dtype),
        empty((threads, 4 * th, 4 * tw, Op), x.dtype),
        y, argmax,
    )  # fmt: skip
    return y, argmax if pool else None


@njit(parallel=True, cache=True)
def _transform_weight(weight, O, planes):
    """G w G^T for every pair of channels: planes (36, panels, C, WIDTH)."""
    _, panels, C, _ = planes.shape
    flat = planes.reshape(-1)
    plane = panels * C * WIDTH
    for c in prange(C):
        part = np.empty(18 * LANES, weight.dtype)
        for o in range(0, O, LANES):
            for v in range(3):
                _by_g(weight, (v * C + c) * O + o, 3 * C * O, part, v * LANES, 3 * LANES)
            at = (o // WIDTH * C + c) * WIDTH + o % WIDTH
            for a in range(6):
                _by_g(part, a * 3 * LANES, LANES, flat, a * 6 * plane + at, plane)


@njit(cache=True)
def _transform_image(image, th, tw, first, plane, part, planes):
    """B^T x B for the tiles of one image, from tile number first: planes (36, tiles, C)."""
    _, Wp, C = image.shape
    pixels = image.reshape(-1)
    for tile in range(th * tw):
        corner = (tile // tw * 4 * Wp + tile % tw * 4) * C
        for c in range(0, C, LANES):
            for a in range(6):
                _by_bt(pixels, corner + a * Wp * C + c, C, part, a * 6 * LANES, LANES)
            at = (first + tile) * C + c
            for b in range(6):
                _by_bt(part, b * LANES, 6 * LANES, planes, b * plane + at, 6 * plane)


@njit(cache=True)
def _transform_back(products, th, tw, first, part, z):
    """A^T m A for the tiles of one image, from tile number first: z (4 * th, 4 * tw, Op)."""
    _, Wz, Op = z.shape
    plane = products.size // 36
    pixels = z.reshape(-1)
    for tile in range(th * tw):
        corner = (tile // tw * 4 * Wz + tile % tw * 4) * Op
        for o in range(0, Op, LANES):
            at = (first + tile) * Op + o
            for a in range(6):
                _by_at(products, a * 6 * plane + at, plane, part, a * 4 * LANES, LANES)
            for b in range(4):
                _by_at(part, b * LANES, 4 * LANES, pixels, corner + b * Op + o, Wz * Op)


@njit(parallel=True, cache=True)
def _convolve(
    x, top, left, weight, bias, relu, size, spread, images, th, tw,
    padded_images, image_planes, product_planes, z_images, y, argmax,
):  # fmt: skip
    """Each block of images belongs to one thread, and so does its scratch."""
    N = x.shape[0]
    plane = image_planes.shape[1] // 36
    for block in prange(-(-N // images)):
        thread = get_thread_id()
        image, planes, products = (
            padded_images[thread],
            image_planes[thread],
            product_planes[thread],
        )
        part = np.empty(36 * LANES, x.dtype)
        first, last = block * images, min((block + 1) * images, N)
        for n in range(first, last):
            if spread:
                spread_image(x[n], argmax[n], LANES, size, top, left, image)
            else:
                pad_image(x[n], top, left, image)
            _transform_image(image, th, tw, (n - first) * th * tw, plane, part, planes)
        _multiply(planes, weight, (last - first) * th * tw, x.shape[3], products)
        for n in range(first, last):
            z = z_images[thread]
            _transform_back(products, th, tw, (n - first) * th * tw, part, z)
            if size > 0 and not spread:
                _pool(z, bias, size, y[n], argmax[n])
            else:
                _finish(z, bias, relu, y[n])


@njit(cache=True)
def _multiply(planes, weight, tiles, C, products):
    """The 36 matrix products, (tiles, C) by (C, Op)."""
    Op = weight.size // (36 * C)
    plane, product_plane = planes.size // 36, products.size // 36
    start = np.zeros(1, np.int64)
    rows = np.arange(tiles + ROWS) * C
    for p in range(36):
        for column in range(0, Op, WIDTH):
            for tile in range(0, tiles, ROWS):
                product_tile(
                    planes, p * plane, rows, tile, start, C, 1,
                    weight, (p * Op + column) * C, WIDTH,
                    products, p * product_plane + tile * Op + column, Op, False, ROWS, 2,
                )  # fmt: skip


@njit(cache=True)
def _pool(z, bias, size, y, argmax):
    """y, argmax (Ho, Wo, O) of z, cell row by cell row."""
    Wz, Op = z.shape[1:]
    for i in range(y.shape[0]):
        band = z[i * size : (i + 1) * size].reshape((size * Wz, Op))
        pool_band(band, Wz, LANES, bias, size, y[i], argmax[i])


@njit(cache=True)
def _finish(z, bias, relu, y):
    """y (Ho, Wo, O) = z + bias, cut off below 0 if relu."""
    Ho, Wo, O = y.shape
    zero = y.dtype.type(0)
    for i in range(Ho):
        for j in range(Wo):
            row, sums = y[i, j], z[i, j]
            for o in range(O):
                value = sums[o] + bias[o]
                row[o] = zero if relu and value <= zero else value  # a NaN stays


def winograd_correlate(
    x: np.ndarray, dy: np.ndarray, geometry: Geometry
) -> tuple[np.ndarray, np.ndarray]:
    """dweight (3, 3, C, O) and dbias (O,) of winograd_convolve."""
    N, _, _, C = x.shape
    O = dy.shape[3]
    th, tw = _tiles(geometry.Ho), _tiles(geometry.Wo)
    images = -(-2 * TILES // (th * tw))
    tiles = images * th * tw
    Op = -(-O // WIDTH) * WIDTH
    threads = get_num_threads()
    chunks = min(CHUNKS, N)
    sums = empty((chunks, 36, C, Op), x.dtype)
    dbiases = np.zeros((chunks, O), x.dtype)
    _correlate(
        np.ascontiguousarray(x), np.ascontiguousarray(dy), geometry.top, geometry.left,
        images, th, tw,
        empty((threads, 4 * th + 2, 4 * tw + 2, C), x.dtype),
        empty((threads, 4 * th, 4 * tw, Op), x.dtype),
        empty((threads, 36 * (tiles * C + GAP)), x.dtype),
        empty((threads, 36 * (tiles * Op + GAP)), x.dtype),
        sums, dbiases,
    )  # fmt: skip
    dweight = empty((3, 3, C, O), x.dtype)
    _transform_dweight(sums, dweight)
    return dweight, dbiases.sum(axis=0)


@njit(parallel=True, cache=True)
def _correlate(
    x, dy, top, left, images, th, tw,
    padded_images, z_images, image_planes, gradient_planes, sums, dbiases,
):  # fmt: skip
    """Each chunk of images belongs to one thread, with its sums."""
    N, chunks = x.shape[0], sums.shape[0]
    plane, gradient_plane = image_planes.shape[1] // 36, gradient_planes.shape[1] // 36
    per_image = th * tw
    for chunk in prange(chunks):
        thread = get_thread_id()
        image, z = padded_images[thread], z_images[thread]
        planes, gradients = image_planes[thread], gradient_planes[thread]
        part = np.empty(36 * LANES, x.dtype)
        clear(z)
        lo, hi = chunk * N // chunks, (chunk + 1) * N // chunks
        for first in range(lo, hi, images):
            last = min(first + images, hi)
            for n in range(first, last):
                done = (n - first) * per_image
                pad_image(x[n], top, left, image)
                _transform_image(image, th, tw, done, plane, part, planes)
                place(dy[n], z)
                add_pixels(z, dbiases[chunk])
                _transform_gradient(z, th, tw, done, gradient_plane, part, gradients)
            _add_products(
                planes, gradients, (last - first) * per_image, x.shape[3], first > lo, sums[chunk]
            )


@njit(cache=True)
def _add_products(planes, gradients, tiles, C, more, sums):
    """sums (36, C, Op): (+)= the 36 matrix products, (C, tiles) by (tiles, Op)."""
    Op = sums.shape[2]
    plane, gradient_plane = planes.size // 36, gradients.size // 36
    start = np.zeros(1, np.int64)
    rows = np.arange(C)
    total = sums.reshape(-1)
    for p in range(36):
        for column in range(0, Op, WIDTH):
            for c in range(0, C, ROWS):
                product_tile(
                    planes, p * plane, rows, c, start, tiles, C,
                    gradients, p * gradient_plane + column, Op,
                    total, (p * C + c) * Op + column, Op, more, ROWS, 2,
                )  # fmt: skip


@njit(cache=True)
def _transform_gradient(z, th, tw, first, plane, part, planes):
    """A dy A^T for the tiles of one image, from tile number first: planes (36, tiles, Op)."""
    _, Wz, Op = z.shape
    pixels = z.reshape(-1)
    for tile in range(th * tw):
        corner = (tile // tw * 4 * Wz + tile % tw * 4) * Op
        for o in range(0, Op, LANES):
            for a in range(4):
                _by_a(pixels, corner + a * Wz * Op + o, Op, part, a * 6 * LANES, LANES)
            at = (first + tile) * Op + o
            for b in range(6):
                _by_a(part, b * LANES, 6 * LANES, planes, b * plane + at, 6 * plane)


@njit(parallel=True, cache=True)
def _transform_dweight(sums, dweight):
    """G^T s G of the chunks' sum, for every pair of channels; the chunks are added in order."""
    chunks, _, C, Op = sums.shape
    O = dweight.shape[3]
    flat = dweight.reshape(-1)
    for c in prange(C):
        part = np.empty(18 * LANES, sums.dtype)
        total = np.zeros((36, Op), sums.dtype)
        for chunk in range(chunks):
            for p in range(36):
                for o in range(Op):
                    total[p, o] += sums[chunk, p, c, o]
        for o in range(0, O, LANES):
            for b in range(6):
                _by_gt(total.reshape(-1), b * Op + o, 6 * Op, part, b * LANES, 6 * LANES)
            for u in range(3):
                _by_gt(part, u * 6 * LANES, LANES, flat, (u * 3 * C + c) * O + o, C * O)
