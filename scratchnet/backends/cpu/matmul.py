"""Matrix products on our own threads: out[m, n] = bias[n] + sum_k a[m, k] * b[k, n].

Why not NumPy's BLAS, which is as fast alone: its threads and those of the compiled loops wait for
work by spinning, and where products and loops alternate, as in a network, each spins on the cores
that the other needs; a layer then takes ten times as long. b is cut into panels a tile wide and
blocks of DEPTH rows, which the first cache holds while a block of rows of a passes by. Each block
of rows belongs to one thread and each sum is added up in one order: the bits do not depend on the
number of threads.
"""

import numpy as np
from numba import get_num_threads, get_thread_id, njit, prange

from scratchnet.backends.cpu.memory import empty
from scratchnet.backends.cpu.tiles import COLUMNS, ROWS, product_tile

BLOCK = 16  # rows of a that share a pass over b
DEPTH = 128  # rows of b in a block
PATCH = 16  # of them, that a cache line of a transposed b has
SPLITS = 8  # of a long sum, where there are too few rows to share out


def matmul(a: np.ndarray, b: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """a (M, k) @ b (k, n) + bias (n,): (M, n). Either matrix may be a transposed one."""
    (M, k), n = a.shape, b.shape[1]
    out = empty((M, n), a.dtype)
    splits = SPLITS if M < SPLITS * BLOCK and k > 32 * SPLITS * BLOCK else 1
    parts = out[None] if splits == 1 else empty((splits, M, n), a.dtype)
    a_flat, a_row, a_step = steps(a)
    b_flat, b_row, b_step = steps(b)
    width = COLUMNS[a.itemsize]
    panels = empty((-(-n // width), k, width), a.dtype)
    pack(b_flat, b_row, b_step, n, panels)
    rows = np.minimum(np.arange(M + BLOCK), M - 1) * a_row
    if bias is None or splits > 1:
        first = np.zeros(n, a.dtype)
    else:
        first = np.ascontiguousarray(bias)
    tiles = empty((get_num_threads(), BLOCK * width), a.dtype)
    _product(a_flat, rows, a_step, panels.reshape(-1), k, width, first, tiles, parts)
    if splits > 1:
        np.sum(parts, axis=0, out=out)
        if bias is not None:
            out += bias
    return out


def steps(matrix: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The numbers in memory order, and how far apart two rows and two columns are."""
    if matrix.flags.c_contiguous or not matrix.T.flags.c_contiguous:
        return np.ascontiguousarray(matrix).reshape(-1), matrix.shape[1], 1
    return matrix.T.reshape(-1), 1, matrix.shape[0]


@njit(parallel=True, cache=True)
def pack(b, row, step, n, panels):
    """b[k * row + n * step] cut into panels (panels, k, width), the last filled up with 0.

    DEPTH rows of a panel at a time; where b is a transposed matrix its columns are what is
    contiguous, and what is read of one is read to the end of a cache line.
    """
    count, depth, width = panels.shape
    blocks = -(-depth // DEPTH)
    for task in prange(count * blocks):
        panel, lo = task // blocks, task % blocks * DEPTH
        hi = min(lo + DEPTH, depth)
        first = panel * width
        inside = min(width, n - first)
        if step == 1:
            for k in range(lo, hi):
                into, start = panels[panel, k], k * row + first
                source = b[start : start + inside]
                for c in range(inside):
                    into[c] = source[c]
                for c in range(inside, width):
                    into[c] = 0
        else:
            for k0 in range(lo, hi, PATCH):
                k1 = min(k0 + PATCH, hi)
                for c in range(width):
                    start = (first + c) * step
                    for k in range(k0, k1):
                        panels[panel, k, c] = b[start + k * row] if c < inside else 0


@njit(parallel=True, cache=True)
def _product(a, rows, step, panels, depth, width, bias, tiles, parts):
    splits, M, n = parts.shape
    blocks = -(-M // BLOCK)
    start = np.zeros(1, np.int64)
    for task in prange(splits * blocks):
        split, first_row = task // blocks, task % blocks * BLOCK
        lo, hi = split * depth // splits, (split + 1) * depth // splits
        last_row = min(first_row + BLOCK, M)
        tile = tiles[get_thread_id()]
        for first in range(0, n, width):
            panel = first * depth  # first // width panels of depth * width numbers
            tile[:] = 0
            for k in range(lo, hi, DEPTH):
                for r in range(first_row, last_row, ROWS):
                    product_tile(
                        a, k * step, rows, r, start, min(DEPTH, hi - k), step,
                        panels, panel + k * width, width,
                        tile, (r - first_row) * width, width, True, ROWS, 2,
                    )  # fmt: skip
            for m in range(first_row, last_row):
                line = parts[split, m, first : first + width]
                for c in range(line.size):
                    line[c] = tile[(m - first_row) * width + c] + bias[first + c]
