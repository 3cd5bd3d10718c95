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

Where that gives few blocks and k is long (the gradient of a weight: k runs over every pixel of the
batch) k is cut into chunks, each chunk's sums go to an array of their own, and a second kernel adds
them in a fixed order and hands them to `store`: the same bits every run, without atomics. `plan`
chooses tile and chunks by the time that they should take. Where M and N are a few numbers, as in
the smallest involutions, tiles would be empty for the most part: there a thread takes whole rows of
k and keeps all sums (`_thin_kernel`).
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from scratchnet.backends.cuda.arrays import Array, empty
from scratchnet.backends.cuda.device import (
    ACCESS,
    BLOCK_BYTES,
    MULTIPROCESSORS,
    RESERVED_BYTES,
    SHARED_BYTES,
    SIMULATED,
    at,
    cuda,
    far,
    launch,
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

    @property
    def staged(self) -> int:
        """Elements of shared memory: two steps of A, and two of B."""
        return 2 * self.BK * (self.BM + PAD + self.BN + PAD)


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
        Tile(128, 128, 16, 8, 8),
        Tile(128, 64, 8, 8, 8),
        Tile(128, 64, 16, 8, 8),
        Tile(64, 64, 16, 8, 8),
        Tile(64, 64, 16, 4, 4),
        Tile(32, 64, 16, 4, 4),
        Tile(64, 32, 32, 4, 4),
        Tile(128, 32, 16, 8, 4),
        Tile(32, 32, 32, 4, 4),
        Tile(128, 16, 16, 4, 4),
    )
)
SHORTEST_CHUNK = 8 if SIMULATED else 64
MOST_CHUNKS = 1024
STEP_CYCLES = 2700  # from one step of a block to its next, at least: what memory takes to answer
STAGE_CYCLES = 9  # of a warp that brings 32 numbers to the stage
BUSY_THREADS = 288  # that keep a multiprocessor busy
JOIN_CYCLES = 0 if SIMULATED else 11000  # of a second kernel that adds chunks
JOINED = 300  # numbers of chunks that are written and read again in a cycle
REGISTERS, THREADS_AT_ONCE = 65536, 2048  # of a multiprocessor
OTHER_REGISTERS = 72  # of a thread, beside its sums
THIN = 64  # sums that a thread keeps of a product of few lines
THIN_BLOCK, JOIN_BLOCK = (8, 8) if SIMULATED else (128, 256)  # threads


class Plan(NamedTuple):
    """A tile, and the length and number of the chunks of k."""

    tile: Tile
    length: int
    chunks: int


@lru_cache
def plan(M: int, N: int, K: int, groups: int, dtype: np.dtype) -> Plan:
    """What takes the least time, by a model of a multiprocessor; shapes alone decide.

    Its blocks take turns to multiply, 128 threads at once, where there are enough to hide what each
    waits for; and none takes a step before its numbers have come from memory. The constants are
    fitted to what the products of the report's networks, and some larger ones, took with many plans
    each on an H200.
    """
    itemsize = np.dtype(dtype).itemsize

    def cycles(plan: Plan) -> float:
        tile, length, chunks = plan
        blocks = -(-M // tile.BM) * -(-N // tile.BN) * groups * chunks
        held = tile.threads * (tile.TM * tile.TN + OTHER_REGISTERS) * itemsize // 4
        resident = max(1, min(
            REGISTERS // held, THREADS_AT_ONCE // tile.threads,
            SHARED_BYTES // (tile.staged * itemsize + RESERVED_BYTES),
        ))  # fmt: skip
        own = -(-blocks // MULTIPROCESSORS)
        in_turns = min(own, resident)
        busy = min(1.0, in_turns * tile.threads / BUSY_THREADS)
        work = tile.BM * tile.BN * tile.BK / 128
        work += STAGE_CYCLES * (tile.BM + tile.BN) * tile.BK / 32
        time = own / in_turns * -(-length // tile.BK) * max(STEP_CYCLES, in_turns * work / busy)
        if chunks > 1:
            time += JOIN_CYCLES + 2 * chunks * M * N * groups / JOINED
        return time

    plans = (
        Plan(tile, *_chunks(K, 2**power))
        for tile in TILES
        for power in range(MOST_CHUNKS.bit_length())
        if tile.staged * itemsize <= BLOCK_BYTES and (power == 0 or K >> power >= SHORTEST_CHUNK)
    )
    return min(plans, key=cycles)


def _chunks(k: int, wanted: int) -> tuple[int, int]:
    """The length, in whole vectors, and number of about so many chunks of k."""
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
    """Sum over all of k, and hand each sum to store; one launch, or two."""
    number = numba_type(dtype)
    if not M * N * groups:
        return
    if not K:  # sums of nothing
        _join(store, number, empty(1, dtype), out, 0, M, N, groups)
        return
    if M * N <= THIN and groups == 1 and not a.along_k and not b.along_k:
        chunks = min(-(-K // (4 * THIN_BLOCK)), 2 * MULTIPROCESSORS)
        partial = empty(chunks * M * N, dtype)
        kernel = _thin_kernel(a, b, number, M, N)
        launch(kernel, chunks, THIN_BLOCK, a_arrays, b_arrays, partial, K)
        _join(store, number, partial, out, chunks, M, N, 1)
        return
    tile, length, chunks = plan(M, N, K, groups, dtype)
    blocks = -(-M // tile.BM), -(-N // tile.BN), groups * chunks
    arguments = M, N, K, length
    if chunks == 1:
        kernel = _kernel(a, b, store, number, tile)
        launch(kernel, blocks, tile.threads, a_arrays, b_arrays, out, *arguments)
        return
    partial = empty(chunks * M * groups * N, dtype)
    kernel = _kernel(a, b, store_rows(groups * N, vector_of(N), dtype), number, tile)
    launch(kernel, blocks, tile.threads, a_arrays, b_arrays, (partial,), *arguments)
    _join(store, number, partial, out, chunks, M, N, groups)


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
    """A product whose rows are dealt out to one or two arrays, in order.

    rows   how many rows each array takes; returns one flat array of rows * groups * N for each
    """
    results = [empty(count * groups * N, dtype) for count in rows]
    store = _deal_rows(groups * N, rows[0])
    out = results[0], results[-1]
    multiply(a, b, store, dtype, a_arrays, b_arrays, out, sum(rows), N, K, groups)
    return results


def _join(
    store: Callable,
    dtype: Any,
    partial: Array,
    out: tuple,
    chunks: int,
    M: int,
    N: int,
    groups: int,
) -> None:
    """Add the chunks up, in a fixed order, and hand the sums to store."""
    squares = -(-M // 4) * -(-N // 4) * groups
    slices = min(1 << max(chunks - 1, 0).bit_length(), JOIN_BLOCK)
    lanes = JOIN_BLOCK // slices
    kernel = _join_kernel(store, dtype, slices)
    launch(kernel, -(-squares // lanes), JOIN_BLOCK, partial, out, chunks, M, N, groups)


def add_chunks(partial: Array, chunks: int, sizes: list[int]) -> list[Array]:
    """Add up `chunks` rows of sum(sizes) elements, in a fixed order, and deal them out by sizes."""
    results = [empty(size, partial.dtype) for size in sizes]
    out = results[0], results[-1]
    store = _deal_rows(1, sizes[0])
    _join(store, numba_type(partial.dtype), partial, out, chunks, sum(sizes), 1, 1)
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


@lru_cache
def _deal_rows(columns: int, first_rows: int) -> Callable:
    """Write so many rows to out[0], and those below them to out[1]."""

    @cuda.jit(device=True)
    def store(out, chunk, group, m, n, square, M, N):
        for i in range(4):
            for j in range(4):
                if m + i < M and n + j < N:
                    column = group * N + n + j
                    if m + i < first_rows:
                        out[0][at((m + i) * columns + column)] = square[4 * i + j]
                    else:
                        out[1][at((m + i - first_rows) * columns + column)] = square[4 * i + j]

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


@cache
def _thin_kernel(a: Matrix, b: Matrix, dtype: Any, M: int, N: int) -> Any:
    """Products of a few lines: a thread takes every so-many-th k, and keeps all M * N sums.

    The threads of a block then halve their number until one holds the sums of all.
    """
    a_vector, b_vector = a.vector, b.vector
    a_line, a_step, a_read = a.line, a.step, a.read
    b_line, b_step, b_read = b.line, b.step, b.read
    a_held, b_held = -(-M // a_vector) * a_vector, -(-N // b_vector) * b_vector
    owned = M * N
    half_block = THIN_BLOCK // 2
    room = half_block * owned
    zero = dtype(0)

    @cuda.jit
    def thin_product(a_arrays, b_arrays, partial, K):
        staged = cuda.shared.array(room, dtype)
        sums = cuda.local.array(owned, dtype)
        column = cuda.local.array(a_held, dtype)
        row = cuda.local.array(b_held, dtype)
        t = cuda.threadIdx.x
        for e in range(owned):
            sums[e] = zero
        for k in range(cuda.blockIdx.x * THIN_BLOCK + t, K, cuda.gridDim.x * THIN_BLOCK):
            for m in range(0, M, a_vector):
                for q in range(a_vector):
                    column[m + q] = zero
                a_read(a_arrays, a_line(m, at(0)), a_step(k, at(0)), column, m)
            for n in range(0, N, b_vector):
                for q in range(b_vector):
                    row[n + q] = zero
                b_read(b_arrays, b_line(n, at(0)), b_step(k, at(0)), row, n)
            for m in range(M):
                for n in range(N):
                    sums[m * N + n] += column[m] * row[n]
        half = half_block
        while half > 0:
            if t >= half and t < 2 * half:
                for e in range(owned):
                    staged[at(e * half_block + t - half)] = sums[e]
            cuda.syncthreads()
            if t < half:
                for e in range(owned):
                    sums[e] += staged[at(e * half_block + t)]
            cuda.syncthreads()
            half //= 2
        if t == 0:
            for e in range(owned):
                partial[at(cuda.blockIdx.x * owned + e)] = sums[e]

    return thin_product


@cache
def _join_kernel(store: Callable, dtype: Any, slices: int) -> Any:
    """Chunks are dealt out to slices of a block; a thread owns a square of 4 x 4 sums of each.

    It adds its chunks up, and slices join, halving their number each time.
    """
    lanes = JOIN_BLOCK // slices
    room = 16 * JOIN_BLOCK
    zero = dtype(0)

    @cuda.jit
    def join_chunks(partial, out, chunks, M, N, groups):
        staged = cuda.shared.array(room, dtype)
        square = cuda.local.array(16, dtype)
        t = cuda.threadIdx.x
        lane, part = at(t) % lanes, at(t) // lanes
        across = (N + 3) // 4
        squares = (M + 3) // 4 * across * groups
        own = cuda.blockIdx.x * lanes + lane
        group, n = at(own) // at(across) % at(groups), at(own) % at(across) * 4
        m = at(own) // at(across * groups) * 4
        for e in range(16):
            square[e] = zero
        if own < squares:
            for chunk in range(part, chunks, slices):
                first = ((chunk * M + m) * groups + group) * N + n
                for p in range(4):
                    for q in range(4):
                        if m + p < M and n + q < N:
                            square[4 * p + q] += partial[at(first + p * groups * N + q)]
        half = slices // 2
        while half > 0:
            if part >= half and part < 2 * half:
                for e in range(16):
                    staged[at(e * JOIN_BLOCK + t)] = square[e]
            cuda.syncthreads()
            if part < half:
                for e in range(16):
                    square[e] += staged[at(e * JOIN_BLOCK + t + half * lanes)]
            cuda.syncthreads()
            half //= 2
        if part == 0 and own < squares:
            store(out, 0, group, m, n, square, M, N)

    return join_chunks
