"""The tiled matrix product that dense layers and convolutions are made of.

    y[m,n] = sum_k A[m,k] * B[k,n]

A and B are functions, not arrays: an operator says how to read element [line, k] of a factor, where
a line is a row of A or a column of B, and the matrix may be a transpose, the windows of an image,
or a gradient that a ReLU lets through, without ever being written. `store` takes the sums where
they belong.

A block owns BM x BN outputs and walks along k in steps of BK. Each step stages a BM x BK piece of A
and a BK x BN piece of B in shared memory, which every output of the block then reads; a thread owns
TM x TN outputs in registers, so that TM + TN numbers read make TM * TN multiply-adds. While a step
is multiplied, the next is already on its way from memory into registers, and the stage has two
halves, so one barrier a step suffices. It trades shared memory and registers for traffic: of each
piece of A, memory is read once for BN columns.

What is not a multiply-add competes with them for the same issue slots, so there should be little:
the BK rows of a step are written out one after the other instead of looped over, their addresses
are constants next to one base; what a line's index says (which image, which pixel) is found once
for all steps; and where four neighbours of memory are four neighbours of the matrix, they come in
one load. With tiles of 128 x 128, 512 of a step's 600 instructions multiply and add.

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
    ACCESS,
    SIMULATED,
    at,
    cuda,
    far,
    launch,
    launch_over,
    load4,
    numba_type,
    staging,
    uint32,
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
    """How to read one factor of a product, by device functions for indices inside the matrix.

    line(index, group)                     three numbers that a line's elements have in common
    step(k, group)                         three numbers that the elements at k have in common
    read(arrays, line, step, out, first)   from both, elements to out[first], out[first + 1], ...;
                                           it may leave the zeros that it finds there
    along_k     whether neighbours along k are neighbours in memory, or neighbouring lines
    vector      how many such neighbours `read` finds at once, 4 or 1; 4 divides how many there are
    """

    line: Callable
    step: Callable
    read: Callable
    along_k: bool
    vector: int


TILES = (
    (Tile(8, 8, 4, 4, 4),)
    if SIMULATED
    else (
        Tile(128, 128, 8, 8, 8),
        Tile(128, 64, 8, 8, 4),
        Tile(64, 64, 8, 4, 4),
        Tile(32, 64, 8, 4, 4),
        Tile(128, 32, 8, 8, 4),
        Tile(128, 16, 8, 4, 4),
    )
)
BLOCKS = 4 if SIMULATED else 264  # that a product should start at least: two for each SM of an H200
SHORTEST_CHUNK = 8 if SIMULATED else 256


@lru_cache
def choose_tile(M: int, N: int, in_chunks: bool = False) -> Tile:
    """The tile whose blocks take the least time to cover M x N.

    For each k, a thread takes TM * TN multiply-adds and about 16 instructions for all else, as the
    disassembly shows; blocks run in waves of BLOCKS, which chunks of k can always fill.
    """

    def time(tile: Tile) -> float:
        blocks = -(-M // tile.BM) * -(-N // tile.BN)
        work = tile.TM * tile.TN + 16
        waves = blocks * tile.threads / (256 * BLOCKS)
        return work * (waves if in_chunks else max(1.0, waves))

    return min(TILES, key=time)


def chunks_of(k: int, outputs: int) -> tuple[int, int]:
    """The length, in whole vectors, and number of chunks of k that give enough blocks.

    Shapes alone decide.
    """
    wanted = max(1, min(BLOCKS // max(outputs, 1), k // SHORTEST_CHUNK))
    length = -(-k // (4 * wanted)) * 4
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
    tile = choose_tile(M, N, in_chunks=True)
    outputs = -(-M // tile.BM) * -(-N // tile.BN) * groups
    length, chunks = chunks_of(K, outputs)
    partial = empty(chunks * M * columns, dtype)
    store = store_rows(columns, vector_of(N), dtype)
    kernel = _kernel(a, b, store, numba_type(dtype), tile)
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


def vector_of(width: int) -> int:
    """How many neighbours to read or write at once in runs of `width`."""
    return 4 if width % 4 == 0 else 1


@lru_cache
def stored(line_stride: int, k_stride: int, group_stride: int, vector: int) -> Matrix:
    """A factor that is an array: [line, k] is line * line_stride + k * k_stride + its group's."""
    load, _ = ACCESS[vector]

    @cuda.jit(device=True)
    def line_of(index, group):
        return at(index * line_stride + group * group_stride), at(0), at(0)

    @cuda.jit(device=True)
    def step_of(k, group):
        return at(k * k_stride), at(0), at(0)

    @cuda.jit(device=True)
    def read(arrays, line, step, out, first):
        values = load(arrays[0], at(line[0] + step[0]))
        for q in range(vector):
            out[first + q] = values[q]

    return Matrix(line_of, step_of, read, line_stride != 1, vector)


@lru_cache
def with_ones_below(matrix: Matrix, lines: int, dtype: np.dtype) -> Matrix:
    """A factor of so many lines, and one more of ones: its product is the sum over k."""
    line_of, read_inside = matrix.line, matrix.read
    ones = 2**32 - 1  # which no line's first number is
    one = numba_type(dtype)(1)

    @cuda.jit(device=True)
    def line_or_ones(index, group):
        if index == lines:
            return at(ones), at(0), at(0)
        return line_of(index, group)

    @cuda.jit(device=True)
    def read(arrays, line, step, out, first):
        if line[0] == ones:
            out[first] = one
        else:
            read_inside(arrays, line, step, out, first)

    return matrix._replace(line=line_or_ones, read=read)


@lru_cache
def store_rows(
    columns: int,
    vector: int,
    dtype: np.dtype,
    has_bias: bool = False,
    open_above_zero: bool = False,
) -> Callable:
    """Write a square of sums as rows of `columns` elements, those of a chunk below the last one's.

    out = (y,), or (y, bias) to add a bias.
    open_above_zero cuts the sums off below 0, a ReLU's forward. A NaN stays one.
    """
    _, store_vector = ACCESS[vector]
    zero = numba_type(dtype)(0)

    @cuda.jit(device=True)
    def store(out, chunk, group, m, n, square, M, N):
        for j in range(4):
            if n + j < N:
                for i in range(4):
                    if has_bias:
                        square[4 * i + j] += out[1][at(group * N + n + j)]
                    if open_above_zero and square[4 * i + j] <= 0:
                        square[4 * i + j] = zero
        for i in range(4):
            for j in range(0, 4, vector):
                if m + i < M and n + j < N:
                    e = (chunk * M + m + i) * columns + group * N + n + j
                    store_vector(out[0], at(e), square, 4 * i + j)

    return store


class _Carrier(NamedTuple):
    """Device functions with which the threads of a block bring a piece of a factor to the stage."""

    find: Callable  # the numbers of the lines that thread t reads, for all steps
    fetch: Callable  # its elements of a step, from memory to registers
    put: Callable  # and from there to the stage
    numbers: int  # of lines, that a thread keeps
    held: int  # elements in its registers


@cache
def _carrier(matrix: Matrix, extent: int, BK: int, threads: int, dtype: Any) -> _Carrier:
    """For pieces of `extent` lines, BK deep, and vectors shared out to the threads in turn."""
    line_of, step_of, read, along_k, vector = matrix
    run = (BK if along_k else extent) // vector
    count = extent * BK // vector
    loads = -(-count // threads)
    lines = 1 if not along_k and threads % run == 0 else loads
    uneven = count % threads != 0
    width = extent + PAD
    _, store_vector = ACCESS[vector]
    zero = dtype(0)

    @cuda.jit(device=True)
    def place(e):
        if along_k:
            return at(e) // run, at(e) % run * vector
        return at(e) % run * vector, at(e) // run

    @cuda.jit(device=True)
    def find(numbers, first_line, group, t):
        for i in range(lines):
            line, _ = place(t + i * threads)
            numbers[3 * i], numbers[3 * i + 1], numbers[3 * i + 2] = line_of(
                first_line + line, group
            )

    @cuda.jit(device=True)
    def fetch(arrays, numbers, first_line, end_line, first_k, end_k, group, t, out):
        for i in range(loads):
            line, k = place(t + i * threads)
            own = 3 * (i % lines)
            for q in range(vector):
                out[i * vector + q] = zero
            if (
                first_line + line < end_line
                and first_k + k < end_k
                and (not uneven or t + i * threads < count)
            ):
                numbers_of_line = at(numbers[own]), at(numbers[own + 1]), at(numbers[own + 2])
                read(arrays, numbers_of_line, step_of(first_k + k, group), out, i * vector)

    @cuda.jit(device=True)
    def put(stage, start, held, t):
        for i in range(loads):
            line, k = place(t + i * threads)
            if not uneven or t + i * threads < count:
                if along_k:
                    for q in range(vector):
                        stage[far(start + (k + q) * width + line)] = held[i * vector + q]
                else:
                    store_vector(stage, far(start + k * width + line), held, i * vector)

    return _Carrier(find, fetch, put, 3 * lines, loads * vector)


@cache
def _rows(tile: Tile, times: int) -> Callable:
    """Multiply `times` rows of the stage, one after the other: twice half as many."""
    BM, BN, _, TM, TN = tile
    if times > 1:
        half, other_half = _rows(tile, times // 2), _rows(tile, times - times // 2)
        a_half, b_half = times // 2 * (BM + PAD), times // 2 * (BN + PAD)

        @cuda.jit(device=True)
        def multiply_rows(staged, a, b, column, row, sums):
            half(staged, a, b, column, row, sums)
            other_half(staged, a + a_half, b + b_half, column, row, sums)

        return multiply_rows

    @cuda.jit(device=True)
    def multiply_row(staged, a, b, column, row, sums):
        for i in range(TM // 4):
            four = load4(staged, far(a + i * (BM * 4 // TM)))
            for q in range(4):
                column[i * 4 + q] = four[q]
        for j in range(TN // 4):
            four = load4(staged, far(b + j * (BN * 4 // TN)))
            for q in range(4):
                row[j * 4 + q] = four[q]
        for i in range(TM):
            for j in range(TN):
                sums[i, j] += column[i] * row[j]

    return multiply_row


@cache
def _kernel(a: Matrix, b: Matrix, store: Callable, dtype: Any, tile: Tile) -> Any:
    BM, BN, BK, TM, TN = tile
    threads = tile.threads
    columns_of_threads = BN // TN
    a_half, b_half = BK * (BM + PAD), BK * (BN + PAD)
    b_start = 2 * a_half
    stage = staging(b_start + 2 * b_half, dtype)
    find_a, fetch_a, put_a, a_numbers, a_held = _carrier(a, BM, BK, threads, dtype)
    find_b, fetch_b, put_b, b_numbers, b_held = _carrier(b, BN, BK, threads, dtype)
    multiply_rows = _rows(tile, BK)
    zero = dtype(0)

    @cuda.jit
    def matrix_product(a_arrays, b_arrays, out, M, N, K, chunk_length):
        staged = stage()  # two halves of A, then two halves of B
        sums = cuda.local.array((TM, TN), dtype)
        column = cuda.local.array(TM, dtype)
        row = cuda.local.array(TN, dtype)
        square = cuda.local.array(16, dtype)
        held_a = cuda.local.array(a_held, dtype)
        held_b = cuda.local.array(b_held, dtype)
        lines_a = cuda.local.array(a_numbers, uint32)
        lines_b = cuda.local.array(b_numbers, uint32)
        t = cuda.threadIdx.x
        ty, tx = at(t) // columns_of_threads, at(t) % columns_of_threads
        first_m, first_n = cuda.blockIdx.x * BM, cuda.blockIdx.y * BN
        chunks = (K + chunk_length - 1) // chunk_length
        group, chunk = at(cuda.blockIdx.z) // at(chunks), at(cuda.blockIdx.z) % at(chunks)
        first_k = chunk * chunk_length
        end_k = first_k + chunk_length
        if end_k > K:
            end_k = K
        find_a(lines_a, first_m, group, t)
        find_b(lines_b, first_n, group, t)
        for i in range(TM):
            for j in range(TN):
                sums[i, j] = zero

        steps = (end_k - first_k + BK - 1) // BK
        for step in range(steps + 1):
            half, k = step & 1, first_k + step * BK
            if step < steps:
                fetch_a(a_arrays, lines_a, first_m, M, k, end_k, group, t, held_a)
                fetch_b(b_arrays, lines_b, first_n, N, k, end_k, group, t, held_b)
            if step > 0:
                first_a, first_b = (1 - half) * a_half, b_start + (1 - half) * b_half
                multiply_rows(staged, first_a + ty * 4, first_b + tx * 4, column, row, sums)
            if step < steps:
                put_a(staged, half * a_half, held_a, t)
                put_b(staged, b_start + half * b_half, held_b, t)
            cuda.syncthreads()

        for i in range(TM // 4):
            for j in range(TN // 4):
                m = first_m + i * (BM * 4 // TM) + ty * 4
                n = first_n + j * (BN * 4 // TN) + tx * 4
                if m < M and n < N:
                    for p in range(4):
                        for q in range(4):
                            square[4 * p + q] = sums[i * 4 + p, j * 4 + q]
                    store(out, chunk, group, m, n, square, M, N)

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
