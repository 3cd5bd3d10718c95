"""Involution: a family of three kernels, compiled for C, K, G, stride and the image's size.

    y[n,i,j,c]           = sum_{u,v} kernel[n,i,j,g(c),u,v] * x[n, r(i,u), s(j,v), c]
    dkernel[n,i,j,g,u,v] = sum_{c in g} dy[n,i,j,c] * x[n, r(i,u), s(j,v), c]
    dx[n,r,s,c]          = sum_{u,v} dy[n, i(r,u), j(s,v), c] * kernel[n, i(r,u), j(s,v), g(c),u,v]

A block owns a stretch of some image rows and a slab of channels; a thread owns a vector of 4
channels (1 where groups do not divide into fours) of PIXELS neighbouring pixels. Neighbouring
threads own neighbouring vectors, so a warp reads runs of memory, 16 bytes a thread. For each row of
the window a thread reads PIXELS + K - 1 vectors of the image into registers and uses them for
PIXELS * K taps: a load feeds 2.8 multiply-adds of vectors at K = 7, where a thread for every output
and tap loads two numbers for each.

The window's weights, one number for each pixel, group and tap, are staged in shared memory: read
once from memory in order, then by all channels of the group. `dkernel` goes the other way: sums
over a group's channels stay in the registers of one thread, gather in shared memory, and leave in
order; no atomics. `dx` is a gather: a pixel asks every window that it lies in, and the weights of
those windows are staged row by row, with the halo of windows whose centre lies outside the block.

Where the staged weights come from is a function, `fill`: here they are read, in
`generated_involution.py` they are made on the spot, and never written to memory at all.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.device import (
    ACCESS,
    SIMULATED,
    at,
    cuda,
    far,
    launch,
    numba_type,
    staging,
)
from scratchnet.checks import check_involution, check_like
from scratchnet.geometry import Geometry

BLOCK = 16 if SIMULATED else 128  # threads, about
PIXELS = 2 if SIMULATED else 4  # of a thread
LANES = 4 if SIMULATED else 32  # threads along the channels, at most
DEEPEST = 64  # threads that a block may have along its third axis
NONE = 2**32 - 1  # a row that is not there
STAGE = 48 * 1024  # bytes of shared memory for the weights: what every GPU gives without asking


class Sizes(NamedTuple):
    """An involution, but for the batch: what its kernels are compiled for."""

    H: int
    W: int
    C: int
    G: int
    K: int
    stride: int
    dilation: int
    Ho: int
    Wo: int

    @property
    def vector(self) -> int:
        """Channels that a thread reads at once; a vector lies within one group."""
        return 4 if self.C // self.G % 4 == 0 else 1

    @property
    def before(self) -> int:
        """Pixels from a window's first tap to its centre."""
        return self.dilation * (self.K // 2)


class Block(NamedTuple):
    """What a block of threads owns: rows x wide pixels of `lanes` vectors of channels."""

    lanes: int
    strips: int
    rows: int
    pixels: int
    groups: int  # that the lanes' channels can belong to

    @property
    def wide(self) -> int:
        return self.strips * self.pixels

    @property
    def threads(self) -> tuple[int, int, int]:
        return self.lanes, self.strips, self.rows


class Fill(NamedTuple):
    """Where weights come from.

    make(sizes, dtype, block, wide, taps)   gives the device function fill(stage, source, row,
               first_j, first_g, u, tz, t): thread t of those that own row tz of the block takes
               part in staging weights[tz, j, g, tap] of `wide` output pixels in a row of outputs,
               which is NONE where there is nothing to stage. All threads of the block call it
    extra(block, wide)                      how many more elements of the stage it wants
    """

    make: Callable
    extra: Callable


def involution_forward(x: Array, kernel: Array, stride: int = 1, dilation: int = 1) -> Array:
    """x (N, H, W, C), kernel (N, Ho, Wo, G, K, K)  ->  (N, Ho, Wo, C)."""
    x, kernel = on_device(x, kernel)
    geometry = check_involution("involution", x, kernel, stride, dilation)
    G, K = kernel.shape[3], kernel.shape[5]
    return aggregate(x, sizes_of(x, G, K, stride, dilation, geometry), READ, (kernel,))


def involution_backward(
    dy: Array,
    x: Array,
    kernel: Array,
    stride: int = 1,
    dilation: int = 1,
    need_dx: bool = True,
) -> tuple[Array | None, Array]:
    """dy (N, Ho, Wo, C)  ->  dx like x (None where need_dx is False), dkernel like kernel."""
    dy, x, kernel = on_device(dy, x, kernel)
    geometry = check_involution("involution", x, kernel, stride, dilation)
    G, K = kernel.shape[3], kernel.shape[5]
    sizes = sizes_of(x, G, K, stride, dilation, geometry)
    check_like("involution", "dy", dy, (x.shape[0], sizes.Ho, sizes.Wo, sizes.C), x.dtype)
    dx = image_gradient(dy, x.shape, sizes, READ, (kernel,)) if need_dx else None
    return dx, kernel_gradient(dy, x, sizes)


def sizes_of(x: Array, G: int, K: int, stride: int, dilation: int, where: Geometry) -> Sizes:
    _, H, W, C = x.shape
    return Sizes(H, W, C, G, K, stride, dilation, where.Ho, where.Wo)


def aggregate(x: Array, sizes: Sizes, fill: Fill, source: tuple[Array, ...]) -> Array:
    """y: sum each pixel's window with the weights that fill finds for it."""
    N = x.shape[0]
    y = empty((N, sizes.Ho, sizes.Wo, sizes.C), x.dtype)
    block = forward_block(sizes, x.dtype, fill)
    kernel = _forward_kernel(numba_type(x.dtype), sizes, block, fill)
    rows = N * sizes.Ho
    launch(kernel, _blocks(block, rows, sizes.Wo, sizes), block.threads, x, source, y, rows)
    return y


def kernel_gradient(dy: Array, x: Array, sizes: Sizes) -> Array:
    """dkernel (N, Ho, Wo, G, K, K)."""
    N, Ho, Wo, G, K = x.shape[0], sizes.Ho, sizes.Wo, sizes.G, sizes.K
    dkernel = empty((N, Ho, Wo, G, K, K), x.dtype)
    block = kernel_block(sizes, x.dtype)
    kernel = _kernel_gradient_kernel(numba_type(x.dtype), sizes, block)
    blocks = -(-(N * Ho) // block.rows), -(-Wo // block.wide), -(-G // block.lanes)
    launch(kernel, blocks, block.threads, dy, x, dkernel, N * Ho)
    return dkernel


def image_gradient(
    dy: Array,
    x_shape: tuple,
    sizes: Sizes,
    fill: Fill,
    source: tuple[Array, ...],
    also: Array | None = None,
) -> Array:
    """dx of shape x_shape.

    also (N, Ho, Wo, C) is the gradient of the means of stride x stride cells, which is dealt out
    evenly to the pixels of each and added: what the kernels' own branch returns to the image.
    """
    N = x_shape[0]
    dx = empty(x_shape, dy.dtype)
    block = image_block(sizes, dy.dtype, fill)
    kernel = _image_gradient_kernel(numba_type(dy.dtype), sizes, block, fill, also is not None)
    rows = N * sizes.H
    also = dy if also is None else also
    launch(kernel, _blocks(block, rows, sizes.W, sizes), block.threads, dy, source, also, dx, rows)
    return dx


def forward_block(sizes: Sizes, dtype: np.dtype, fill: Fill) -> Block:
    return _fit(
        sizes,
        sizes.Wo,
        dtype,
        lambda b: b.rows * b.wide * b.groups * sizes.K**2 + fill.extra(b, b.wide),
    )


def image_block(sizes: Sizes, dtype: np.dtype, fill: Fill) -> Block:
    return _fit(
        sizes, sizes.W, dtype,
        lambda b: b.rows * _seen_columns(b, sizes) * b.groups * sizes.K
        + fill.extra(b, _seen_columns(b, sizes)),
    )  # fmt: skip


def kernel_block(sizes: Sizes, dtype: np.dtype) -> Block:
    """Its lanes are groups; it stages sums."""
    lanes = min(sizes.G, LANES)
    return _shrink(
        lanes, PIXELS, sizes.Wo, dtype, lambda lanes: lanes,
        lambda b: b.rows * b.wide * b.lanes * sizes.K**2,
    )  # fmt: skip


def _fit(sizes: Sizes, W: int, dtype: np.dtype, staged: Callable) -> Block:
    def groups(lanes: int) -> int:
        slab, per_group = lanes * sizes.vector, sizes.C // sizes.G
        if slab >= sizes.C:
            return sizes.G
        if slab % per_group == 0 or per_group % slab == 0:
            return max(1, slab // per_group)
        return min(sizes.G, (slab - 2) // per_group + 2)

    lanes = min(sizes.C // sizes.vector, LANES)
    return _shrink(lanes, PIXELS, W, dtype, groups, staged)


def _shrink(
    lanes: int, pixels: int, W: int, dtype: np.dtype, groups: Callable, staged: Callable
) -> Block:
    """About BLOCK threads, along a row of W pixels first; fewer if the stage would not hold it."""
    while True:
        strips = max(1, min(BLOCK // lanes, -(-W // pixels)))
        rows = min(max(1, BLOCK // (lanes * strips)), DEEPEST)
        while True:
            block = Block(lanes, strips, rows, pixels, groups(lanes))
            if staged(block) * np.dtype(dtype).itemsize <= STAGE:
                return block
            if rows > 1:
                rows = (rows + 1) // 2
            elif strips > 1:
                strips = (strips + 1) // 2
            else:
                break
        if lanes > 1:
            lanes = (lanes + 1) // 2
        elif pixels > 1:
            pixels = 1
        else:
            raise ValueError(
                f"involution: the weights of one pixel do not fit the {STAGE} bytes of shared "
                "memory that the cuda backend stages them in: use a smaller kernel"
            )


def _blocks(block: Block, rows: int, W: int, sizes: Sizes) -> tuple[int, int, int]:
    slabs = -(-sizes.C // (block.lanes * sizes.vector))
    return -(-rows // block.rows), -(-W // block.wide), slabs


def _seen_columns(block: Block, sizes: Sizes) -> int:
    """Columns of output pixels whose windows can hold a pixel of the block.

    In whole fours, so that what makes their weights can make those of four at once.
    """
    return ((block.wide - 1 + (sizes.K - 1) * sizes.dilation) // sizes.stride + 5) // 4 * 4


@lru_cache
def _read_weights(sizes: Sizes, dtype: Any, block: Block, wide: int, taps: int) -> Callable:
    Wo, G, K = sizes.Wo, sizes.G, sizes.K
    threads = block.lanes * block.strips
    run = block.groups * taps  # of a pixel
    # all weights of the block's own pixels, whose first_j is not negative: one run of memory
    contiguous = taps == K * K and block.lanes * sizes.vector >= sizes.C
    zero = dtype(0)

    @cuda.jit(device=True)
    def fill(stage, source, row, first_j, first_g, u, tz, t):
        if row != NONE:
            first = (row * Wo + first_j) * (G * K * K) + first_g * (K * K) + u * K
            end = at((G - first_g) * taps)
            e = at(t)
            while e < wide * run:
                value = zero
                if contiguous:
                    if e < at((Wo - first_j) * run):
                        value = source[0][at(first + e)]
                else:
                    pixel, k = at(e // run), at(e % run)
                    if at(first_j + pixel) < Wo and k < end:
                        tap = k if taps == K * K else at(k // taps * (K * K) + k % taps)
                        value = source[0][far(first + at(pixel * (G * K * K) + tap))]
                stage[far(tz * (wide * run) + e)] = value
                e = at(e + threads)

    return fill


READ = Fill(_read_weights, lambda block, wide: 0)


@lru_cache
def seen_row(sizes: Sizes) -> Callable:
    """The row of outputs that met image row (n, r) through tap row u; NONE where there is none."""
    H, Ho, stride, dilation, before = (
        sizes.H, sizes.Ho, sizes.stride, sizes.dilation, sizes.before,
    )  # fmt: skip

    @cuda.jit(device=True)
    def row_of(row, rows, u):
        n = at(at(row) // H)
        first = at(at(row) - n * H + before - u * dilation)  # wraps where it is negative
        i = at(first // stride)
        if row >= rows or first % stride != 0 or i >= Ho:
            return at(NONE)
        return at(n * Ho + i)

    return row_of


@lru_cache
def _forward_kernel(dtype: Any, sizes: Sizes, block: Block, fill: Fill) -> Any:
    H, W, C, G, K, stride, dilation, Ho, Wo = sizes
    vector, before, per_group = sizes.vector, sizes.before, C // G
    lanes, strips, block_rows, pixels, groups = block
    wide = block.wide
    taps = K * K
    columns = (pixels - 1) * stride + (K - 1) * dilation + 1
    owned, read = pixels * vector, columns * vector
    stage = staging(block_rows * wide * groups * taps + fill.extra(block, wide), dtype)
    fill_weights = fill.make(sizes, dtype, block, wide, taps)
    load, store = ACCESS[vector]
    zero = dtype(0)

    @cuda.jit
    def involution(x, source, y, rows):
        weights = stage()
        sums = cuda.local.array(owned, dtype)
        window = cuda.local.array(read, dtype)
        tx, ty, tz = cuda.threadIdx.x, cuda.threadIdx.y, cuda.threadIdx.z
        first_row = cuda.blockIdx.x * block_rows
        first_j = cuda.blockIdx.y * wide
        first_c = cuda.blockIdx.z * lanes * vector
        first_g = first_c // per_group
        t = ty * lanes + tx
        row, c, j = first_row + tz, first_c + tx * vector, first_j + ty * pixels
        own = at(row) if row < rows else at(NONE)
        fill_weights(weights, source, own, first_j, first_g, 0, tz, t)
        cuda.syncthreads()

        if row >= rows or c >= C or j >= Wo:
            return
        n, i = at(row) // Ho, at(row) % Ho
        g = at(c) // per_group - first_g
        left = j * stride - before
        first_weight = ((tz * wide + ty * pixels) * groups + g) * taps
        for e in range(owned):
            sums[e] = zero
        for u in range(K):
            r = i * stride + u * dilation - before
            on_image = r >= 0 and r < H
            first = ((n * H + r) * W + left) * C + c
            for column in range(columns):
                if on_image and at(left + column) < W:
                    values = load(x, far(first + column * C))
                    for q in range(vector):
                        window[column * vector + q] = values[q]
                else:
                    for q in range(vector):
                        window[column * vector + q] = zero
            for p in range(pixels):
                for v in range(K):
                    weight = weights[far(first_weight + u * K + p * groups * taps + v)]
                    for q in range(vector):
                        column = p * stride + v * dilation
                        sums[p * vector + q] += weight * window[column * vector + q]
        first = (row * Wo + j) * C + c
        for p in range(pixels):
            if j + p < Wo:
                store(y, far(first + p * C), sums, p * vector)

    return involution


@lru_cache
def _image_gradient_kernel(
    dtype: Any, sizes: Sizes, block: Block, fill: Fill, has_also: bool
) -> Any:
    H, W, C, G, K, stride, dilation, Ho, Wo = sizes
    vector, before, per_group = sizes.vector, sizes.before, C // G
    lanes, strips, block_rows, pixels, groups = block
    wide = block.wide
    seen = _seen_columns(block, sizes)
    columns = pixels + (K - 1) * dilation  # outputs that a thread's pixels see in a row, stride 1
    owned, read = pixels * vector, columns * vector
    stage = staging(block_rows * seen * groups * K + fill.extra(block, seen), dtype)
    row_of = seen_row(sizes)
    fill_weights = fill.make(sizes, dtype, block, seen, K)
    load, store = ACCESS[vector]
    zero = dtype(0)

    @cuda.jit
    def involution_image_gradient(dy, source, also, dx, rows):
        weights = stage()
        sums = cuda.local.array(owned, dtype)
        window = cuda.local.array(read, dtype)
        tx, ty, tz = cuda.threadIdx.x, cuda.threadIdx.y, cuda.threadIdx.z
        first_row = cuda.blockIdx.x * block_rows
        first_s = cuda.blockIdx.y * wide
        first_c = cuda.blockIdx.z * lanes * vector
        first_g = first_c // per_group
        # the first output column that can see the block's first pixel, through its last tap
        first_j = (first_s + before - (K - 1) * dilation) // stride
        t = ty * lanes + tx
        row, c, s = first_row + tz, first_c + tx * vector, first_s + ty * pixels
        g = at(c) // per_group - first_g
        left = s + before - (K - 1) * dilation
        first_weight = ((tz * seen + ty * pixels) * groups + g) * K
        mine = row < rows and c < C and s < W
        for e in range(owned):
            sums[e] = zero
        for u in range(K):
            seen_by = row_of(row, rows, u)
            cuda.syncthreads()
            fill_weights(weights, source, seen_by, first_j, first_g, u, tz, t)
            cuda.syncthreads()
            if mine and seen_by != NONE:
                if stride == 1:
                    first = (seen_by * Wo + left) * C + c
                    for column in range(columns):
                        if at(left + column) < Wo:
                            values = load(dy, far(first + column * C))
                            for q in range(vector):
                                window[column * vector + q] = values[q]
                        else:
                            for q in range(vector):
                                window[column * vector + q] = zero
                    for p in range(pixels):
                        for v in range(K):
                            column = p + (K - 1 - v) * dilation
                            weight = weights[far(first_weight + column * groups * K + v)]
                            for q in range(vector):
                                sums[p * vector + q] += weight * window[column * vector + q]
                else:
                    for p in range(pixels):
                        for v in range(K):
                            first = s + p + before - v * dilation
                            j = at(first) // stride
                            if first >= 0 and at(first) % stride == 0 and j < Wo:
                                pixel = tz * seen + j - first_j
                                weight = weights[at((pixel * groups + g) * K + v)]
                                values = load(dy, at((seen_by * Wo + j) * C + c))
                                for q in range(vector):
                                    sums[p * vector + q] += weight * values[q]
        if mine:
            n, r = at(row) // H, at(row) % H
            for p in range(pixels):
                if s + p < W:
                    if has_also:
                        i, j = at(r) // stride, at(s + p) // stride
                        high = stride if (i + 1) * stride <= H else H - i * stride
                        across = stride if (j + 1) * stride <= W else W - j * stride
                        values = load(also, at(((n * Ho + i) * Wo + j) * C + c))
                        for q in range(vector):
                            sums[p * vector + q] += values[q] / dtype(high * across)
                    store(dx, at((row * W + s + p) * C + c), sums, p * vector)

    return involution_image_gradient


@lru_cache
def _kernel_gradient_kernel(dtype: Any, sizes: Sizes, block: Block) -> Any:
    H, W, C, G, K, stride, dilation, Ho, Wo = sizes
    vector, before, per_group = sizes.vector, sizes.before, C // G
    lanes, strips, block_rows, pixels, _ = block
    wide = block.wide
    taps = K * K
    run = lanes * taps  # of a pixel
    columns = (pixels - 1) * stride + (K - 1) * dilation + 1
    owned, read, weighed = pixels * vector, columns * vector, pixels * K
    stage = staging(block_rows * wide * run, dtype)
    load, _ = ACCESS[vector]
    zero = dtype(0)

    @cuda.jit
    def involution_kernel_gradient(dy, x, dkernel, rows):
        staged = stage()
        sums = cuda.local.array(weighed, dtype)
        window = cuda.local.array(read, dtype)
        gradient = cuda.local.array(owned, dtype)
        tx, ty, tz = cuda.threadIdx.x, cuda.threadIdx.y, cuda.threadIdx.z
        first_row = cuda.blockIdx.x * block_rows
        first_j = cuda.blockIdx.y * wide
        first_g = cuda.blockIdx.z * lanes
        row, j, g = first_row + tz, first_j + ty * pixels, first_g + tx
        n, i = at(row) // Ho, at(row) % Ho
        left = j * stride - before
        first_sum = ((tz * wide + ty * pixels) * lanes + tx) * taps
        if row < rows and j < Wo and g < G:
            for u in range(K):
                r = i * stride + u * dilation - before
                on_image = r >= 0 and r < H
                first_x = ((n * H + r) * W + left) * C + g * per_group
                first_dy = (row * Wo + j) * C + g * per_group
                for e in range(weighed):
                    sums[e] = zero
                for c in range(0, per_group, vector):
                    for column in range(columns):
                        if on_image and at(left + column) < W:
                            values = load(x, far(first_x + c + column * C))
                            for q in range(vector):
                                window[column * vector + q] = values[q]
                        else:
                            for q in range(vector):
                                window[column * vector + q] = zero
                    for p in range(pixels):
                        if j + p < Wo:
                            values = load(dy, far(first_dy + c + p * C))
                            for q in range(vector):
                                gradient[p * vector + q] = values[q]
                        else:
                            for q in range(vector):
                                gradient[p * vector + q] = zero
                    for p in range(pixels):
                        for v in range(K):
                            for q in range(vector):
                                column = p * stride + v * dilation
                                product = gradient[p * vector + q] * window[column * vector + q]
                                sums[p * K + v] += product
                for p in range(pixels):
                    for v in range(K):
                        staged[far(first_sum + u * K + p * lanes * taps + v)] = sums[p * K + v]
        cuda.syncthreads()
        if row < rows:
            first = (row * Wo + first_j) * (G * taps) + first_g * taps
            end = at((G - first_g) * taps)
            e = at(ty * lanes + tx)
            while e < wide * run:
                pixel, k = at(e // run), at(e % run)
                if at(first_j + pixel) < Wo and k < end:
                    value = staged[far(tz * (wide * run) + e)]
                    dkernel[far(first + at(pixel * (G * taps) + k))] = value
                e = at(e + lanes * strips)

    return involution_kernel_gradient
