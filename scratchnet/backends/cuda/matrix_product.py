"""The tiled matrix product that dense layers and convolutions are made of.

    y[m,n] = sum_k A[m,k] * B[k,n]

A and B are functions, not arrays: an operator says how to read element (m, k) of A, and the matrix
may be a transpose, the windows of an image, or a gradient that a ReLU lets through, without ever
being written. `store` takes the sums where they belong.

A block owns BM x BN outputs and walks along k in steps of BK. Each step stages a BM x BK piece of A
and a BK x BN piece of B in shared memory, which every output of the block then reads; a thread owns
TM x TN outputs in registers, so that TM + TN numbers read make TM * TN multiply-adds. While a step
is multiplied, the next is already on its way from memory into registers, and the stage has two
halves, so one barrier a step suffices. It trades shared memory and registers for traffic: of each
piece of A, memory is read once for BN columns.

Where M * N is small and k is long (the gradient of a weight: k runs over every pixel of the batch)
k is cut into chunks, each chunk's sums go to an array of their own, and `add_chunks` adds them in a
fixed order: the same bits every run, without atomics.
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from scratchnet.backends.cuda.arrays import Array, empty
from scratchnet.backends.cuda.device import (
    SIMULATED,
    at,
    cuda,
    launch,
    launch_over,
    load4,
    numba_type,
    staging,
)

PAD = 4  # keeps rows of the stage apart in the banks, and load4 aligned


class Tile(NamedTuple):
    """What a block (BM x BN, BK deep) and a thread (TM x TN) own. TM and TN are multiples of 4."""

    BM: int
    BN: int
    BK: int
    TM: int
    TN: int

    @property
    def threads(self) -> int:
        return (self.BM // self.TM) * (self.BN // self.TN)


class Matrix(NamedTuple):
    """How to read one factor of a product.

    read(arrays, row, column, group)   a device function, for indices inside the matrix
    along_k                            whether neighbours along k are neighbours in memory, so that
                                       neighbouring threads should read them
    """

    read: Callable
    along_k: bool


TILES = (
    (Tile(8, 8, 4, 4, 4),)
    if SIMULATED
    else (
        Tile(128, 128, 8, 8, 8),
        Tile(64, 64, 8, 4, 4),
        Tile(32, 64, 8, 4, 4),
        Tile(128, 32, 8, 8, 4),
        Tile(128, 16, 8, 4, 4),
    )
)
BLOCKS = 4 if SIMULATED else 264  # that a product should start at least: two for each SM of an H200
SHORTEST_CHUNK = 8 if SIMULATED else 256


def choose_tile(M: int, N: int) -> Tile:
    """The tile whose blocks take the least time to cover M x N.

    Work is counted in operations of a thread's inner loop, which reads TM + TN numbers for TM * TN
    multiply-adds; blocks run in waves of BLOCKS.
    """

    def time(tile: Tile) -> float:
        blocks = -(-M // tile.BM) * -(-N // tile.BN)
        work = tile.TM * tile.TN + 2 * (tile.TM + tile.TN)
        waves = max(1.0, blocks * tile.threads / (256 * BLOCKS))
        return waves * work

    return min(TILES, key=time)


def chunks_of(k: int, outputs: int) -> tuple[int, int]:
    """The length and the number of chunks of k that give enough blocks; shapes alone decide."""
    wanted = max(1, min(BLOCKS // max(outputs, 1), k // SHORTEST_CHUNK))
    length = -(-k // wanted)
    return length, -(-k // length)


def multiply(
    a: Matrix,
    b: Matrix,
    store: Callable,
    dtype: np.dtype,
    a_arrays: tuple[Array, ...],
    b_arrays: tuple[Array, ...],
    out: tuple[Array, ...],
    M: int,
    N: int,
    K: int,
    groups: int = 1,
) -> None:
    """Sum over all of k, and hand each sum to store; one launch."""
    tile = choose_tile(M, N)
    kernel = _kernel(a, b, store, numba_type(dtype), tile)
    blocks = -(-M // tile.BM), -(-N // tile.BN), groups
    launch(kernel, blocks, tile.threads, a_arrays, b_arrays, out, M, N, K, K)


def multiply_long(
    a: Matrix,
    b: Matrix,
    dtype: np.dtype,
    a_arrays: tuple[Array, ...],
    b_arrays: tuple[Array, ...],
    rows: tuple[int, ...],
    N: int,
    K: int,
    groups: int = 1,
) -> list[Array]:
    """A product with few outputs and a long k, its rows dealt out to several arrays, in order.

    rows   how many rows each array takes; returns one flat array of rows * groups * N for each
    """
    M, columns = sum(rows), groups * N
    dtype = np.dtype(dtype)
    tile = choose_tile(M, N)
    outputs = -(-M // tile.BM) * -(-N // tile.BN) * groups
    length, chunks = chunks_of(K, outputs)
    partial = empty(chunks * M * columns, dtype)
    kernel = _kernel(a, b, _store_chunk(columns), numba_type(dtype), tile)
    blocks = -(-M // tile.BM), -(-N // tile.BN), groups * chunks
    launch(kernel, blocks, tile.threads, a_arrays, b_arrays, (partial,), M, N, K, length)
    return add_chunks(partial, chunks, [count * columns for count in rows])


def add_chunks(partial: Array, chunks: int, sizes: list[int]) -> list[Array]:
    """Add up `chunks` rows of sum(sizes) elements, in order, and deal the sums out by sizes."""
    results = [empty(size, partial.dtype) for size in sizes]
    size = sum(sizes)
    first = results[0]
    second = results[1] if len(results) > 1 else first
    kernel = _add_chunks_kernel(numba_type(partial.dtype))
    launch_over(size, kernel, partial, first, second, sizes[0], chunks)
    return results


@lru_cache
def store_rows(
    columns: int, dtype: np.dtype, has_bias: bool = False, open_above_zero: bool = False
) -> Callable:
    """Write sums as rows of `columns` elements: out = (y,), or (y, bias) to add a bias.

    open_above_zero cuts the sums off below 0, a ReLU's forward. A NaN stays one.
    """
    zero = numba_type(dtype)(0)

    @cuda.jit(device=True)
    def store(out, chunk, group, m, n, rows, M, N):
        column = group * N + n
        for i in range(4):
            if m + i < M:
                value = rows[i]
                if has_bias:
                    value += out[1][at(column)]
                if open_above_zero and value <= 0:
                    value = zero
                out[0][at((m + i) * columns + column)] = value

    return store


@lru_cache
def _store_chunk(columns: int) -> Callable:
    @cuda.jit(device=True)
    def store(out, chunk, group, m, n, rows, M, N):
        for i in range(4):
            if m + i < M:
                out[0][at((chunk * M + m + i) * columns + group * N + n)] = rows[i]

    return store


@cache
def _kernel(a: Matrix, b: Matrix, store: Callable, dtype: Any, tile: Tile) -> Any:
    BM, BN, BK, TM, TN = tile
    threads = tile.threads
    columns_of_threads = BN // TN
    a_width, b_width = BM + PAD, BN + PAD
    a_loads, b_loads = BM * BK // threads, BK * BN // threads
    b_start = 2 * BK * a_width
    stage = staging(b_start + 2 * BK * b_width, dtype)
    read_a, a_along_k = a
    read_b, b_along_k = b
    zero = dtype(0)

    @cuda.jit
    def matrix_product(a_arrays, b_arrays, out, M, N, K, chunk_length):
        staged = stage()  # two halves of A, then two halves of B
        sums = cuda.local.array((TM, TN), dtype)
        next_a = cuda.local.array(a_loads, dtype)
        next_b = cuda.local.array(b_loads, dtype)
        column_a = cuda.local.array(TM, dtype)
        row_b = cuda.local.array(TN, dtype)
        t = cuda.threadIdx.x
        ty, tx = t // columns_of_threads, t % columns_of_threads
        first_m, first_n = cuda.blockIdx.x * BM, cuda.blockIdx.y * BN
        chunks = (K + chunk_length - 1) // chunk_length
        group, chunk = cuda.blockIdx.z // chunks, cuda.blockIdx.z % chunks
        first_k = chunk * chunk_length
        end_k = first_k + chunk_length
        if end_k > K:
            end_k = K
        for i in range(TM):
            for j in range(TN):
                sums[i, j] = zero

        steps = (end_k - first_k + BK - 1) // BK
        for step in range(steps + 1):
            half = step % 2
            if step < steps:
                for i in range(a_loads):
                    e = t + i * threads
                    k = first_k + step * BK + (e % BK if a_along_k else e // BM)
                    m = first_m + (e // BK if a_along_k else e % BM)
                    next_a[i] = zero
                    if m < M and k < end_k:
                        next_a[i] = read_a(a_arrays, m, k, group)
                for i in range(b_loads):
                    e = t + i * threads
                    k = first_k + step * BK + (e % BK if b_along_k else e // BN)
                    n = first_n + (e // BK if b_along_k else e % BN)
                    next_b[i] = zero
                    if n < N and k < end_k:
                        next_b[i] = read_b(b_arrays, k, n, group)
            if step > 0:
                for k in range(BK):
                    a_row = ((1 - half) * BK + k) * a_width
                    b_row = b_start + ((1 - half) * BK + k) * b_width
                    for i in range(TM // 4):
                        four = load4(staged, at(a_row + i * (BM * 4 // TM) + ty * 4))
                        for q in range(4):
                            column_a[i * 4 + q] = four[q]
                    for j in range(TN // 4):
                        four = load4(staged, at(b_row + j * (BN * 4 // TN) + tx * 4))
                        for q in range(4):
                            row_b[j * 4 + q] = four[q]
                    for i in range(TM):
                        for j in range(TN):
                            sums[i, j] += column_a[i] * row_b[j]
            if step < steps:
                for i in range(a_loads):
                    e = t + i * threads
                    k = e % BK if a_along_k else e // BM
                    m = e // BK if a_along_k else e % BM
                    staged[at((half * BK + k) * a_width + m)] = next_a[i]
                for i in range(b_loads):
                    e = t + i * threads
                    k = e % BK if b_along_k else e // BN
                    n = e // BK if b_along_k else e % BN
                    staged[at(b_start + (half * BK + k) * b_width + n)] = next_b[i]
            cuda.syncthreads()

        for j in range(TN):
            n = first_n + (j // 4) * (BN * 4 // TN) + tx * 4 + j % 4
            if n < N:
                for i in range(TM // 4):
                    m = first_m + i * (BM * 4 // TM) + ty * 4
                    if m < M:
                        rows = (
                            sums[i * 4, j],
                            sums[i * 4 + 1, j],
                            sums[i * 4 + 2, j],
                            sums[i * 4 + 3, j],
                        )
                        store(out, chunk, group, m, n, rows, M, N)

    return matrix_product


@lru_cache
def _add_chunks_kernel(dtype: Any) -> Any:
    zero = dtype(0)

    @cuda.jit
    def add_chunks(partial, first, second, first_size, chunks, size):
        for e in range(cuda.grid(1), size, cuda.gridsize(1)):
            total = zero
            for chunk in range(chunks):
                total += partial[at(chunk * size + e)]
            if e < first_size:
                first[at(e)] = total
            else:
                second[at(e - first_size)] = total

    return add_chunks
