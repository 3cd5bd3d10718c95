"""Involution: a family of three kernels, compiled for C, K, G, stride and the image's size.

    y[n,i,j,c]           = sum_{u,v} kernel[n,i,j,g(c),u,v] * x[n, r(i,u), s(j,v), c]
    dkernel[n,i,j,g,u,v] = sum_{c in g} dy[n,i,j,c] * x[n, r(i,u), s(j,v), c]
    dx[n,r,s,c]          = sum_{u,v} dy[n, i(r,u), j(s,v), c] * kernel[n, i(r,u), j(s,v), g(c),u,v]

A block owns a tile of one image's pixels and a slab of its channels. It first fetches what it will
read into shared memory: the part of the image under the tile's windows, zeros where the image ends,
and the windows' weights, one number for each pixel, group and tap. Everything is asked for before
anything is waited for. Tiles are high as well as wide, as neighbouring windows share most of their
pixels: a row of 32 pixels reads 8.3 pixels for each it owns at K = 7, a tile of 8 x 8 reads 3.1.
`best_tile` counts what a tile reads of the caches and of shared memory, and takes the one with the
least for what it owns; small tiles, as blocks that multiply hide the waiting of others.

Neighbouring blocks own the same pixels and other channels. Memory hands out and takes in 32 bytes
at once, and where one group's taps end and the next one's begin, two blocks want the same: run far
apart, they move a sixth more between memory and the L2 cache, and memory is sent parts of 32 bytes,
which it can only write by reading the rest first.

A thread owns a vector of 4 channels (1 where groups do not divide into fours) of PIXELS
neighbouring pixels, and neighbouring threads own neighbouring vectors. For each row of the window
it reads PIXELS + K - 1 vectors into registers and uses them for PIXELS * K taps.

`dx` is the same with another question: a pixel asks every window that it lies in. The weights of
those windows are staged by the pixel that they will be used for, as if they were its own. In
`dkernel` a thread owns one row of taps of TAP_PIXELS pixels and one group, and sums over the
group's channels in registers; sums gather in shared memory, and leave in order. No atomics.

Where the staged weights come from is a `Fill`: here they are read, in `generated_involution.py`
they are made on the spot, and never written to memory at all.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.device import (
    ACCESS,
    BLOCK_BYTES,
    RESERVED_BYTES,
    SHARED_BYTES,
    SIMULATED,
    at,
    cuda,
    far,
    fetching,
    launch,
    numba_type,
    staging,
)
from scratchnet.checks import check_involution, check_like
from scratchnet.geometry import Geometry

BLOCK = 16 if SIMULATED else 256  # threads, at most
PIXELS = (2, 1) if SIMULATED else (4, 1)  # of a thread, in a row
TAP_PIXELS = (2, 1) if SIMULATED else (8, 4, 1)  # of a thread of dkernel, in a row
LANES = 4 if SIMULATED else 32  # threads along the channels, at most
DEEPEST = 64  # threads that a block may have along its third axis
WARP = BANKS = 32  # threads that run together, numbers that shared memory hands out at once
CHANNELS = 4 if SIMULATED else 16  # of a group, that dkernel's blocks take at once
MOST_WARPS, MOST_BLOCKS = 16, 32  # of a multiprocessor: warps by the registers of dkernel
FETCH_CYCLES = 1500  # that a block waits for memory
SECTOR = 8  # numbers that memory hands out at once
CACHED = 6  # numbers that the L2 cache gives a multiprocessor in a cycle: about 5.5 TB/s in all


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

    @property
    def reach(self) -> int:
        """Pixels from a window's first tap to its last."""
        return self.dilation * (self.K - 1)


class Tile(NamedTuple):
    """What a block of threads owns: rows x wide pixels, and the channels of its lanes.

    Along its axes there are so many lanes, strips and rows of threads.
    """

    lanes: int
    strips: int
    rows: int
    pixels: int  # of a thread
    groups: int  # that the lanes' channels can belong to

    @property
    def wide(self) -> int:
        return self.strips * self.pixels

    @property
    def block(self) -> tuple[int, int, int]:
        return self.lanes, self.strips, self.rows

    @property
    def threads(self) -> int:
        return self.lanes * self.strips * self.rows


class Image(NamedTuple):
    """Part of an image in shared memory: down x across pixels of so many channels."""

    down: int
    across: int
    channels: int
    gap: int = 0  # elements behind each row

    @property
    def pixel(self) -> int:
        """Elements from a pixel to the next: with a gap where strips would share their banks."""
        return self.channels + (4 if self.channels % 32 == 16 else 0)

    @property
    def line(self) -> int:
        """Elements from a row to the next; eight rows start in different banks."""
        line = -(-self.across * self.pixel // 4) * 4
        return line + (4 if line % 8 == 0 else 0) + self.gap

    @property
    def size(self) -> int:
        return self.down * self.line

    @property
    def moved(self) -> int:
        """Elements that memory hands out for it."""
        return self.down * self.across * -(-self.channels // SECTOR) * SECTOR


class Weights(NamedTuple):
    """Weights in shared memory: [row, u, pixel, group, v] of the pixels of a tile."""

    rows: int
    wide: int
    groups: int
    K: int
    gap: int  # elements behind each row

    @property
    def pixel(self) -> int:
        return self.groups * self.K

    @property
    def taps(self) -> int:
        """Elements from a row of taps to the next."""
        return self.wide * self.pixel

    @property
    def row(self) -> int:
        return self.K * self.taps + self.gap

    @property
    def size(self) -> int:
        return -(-self.rows * self.row // 4) * 4


class Meeting(NamedTuple):
    """Which outputs meet the pixels of a tile, and through which taps; down and across alike.

    down, across   rows and columns of outputs that the tile can meet
    stride, step   of the tile: rows from where an output meets it to where the next one does,
                   through the same taps, and to where the same one does through the next taps
    output_of      device function (first, r, u, limit) -> i, met: the output that row r of the tile
                   meets through taps u, and whether there is one, below `limit`
    taps_of        device function (first, i) -> place, lowest, end: taps u of output i, from lowest
                   up to end, meet row place + u * step of the tile

    The tile begins at row `first` of its image.
    """

    down: int
    across: int
    stride: int
    step: int
    output_of: Callable
    taps_of: Callable


class Fill(NamedTuple):
    """Where weights come from.

    make(sizes, dtype, tile, meeting, weights, start)    gives the device function
               fill(stage, source, n, first_row, first_column, top, left, first_g, t), which all
               threads t of a block call. Behind stage[start] it stages the weights of the tile that
               begins at first_row and first_column; the first output that it can meet is (top,
               left)
    extra(across)                                        how many more elements of the stage it
               wants, for so many columns of outputs
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
    """The sizes of an involution of x (N, H, W, C) by G kernels of K x K for each pixel."""
    _, H, W, C = x.shape
    return Sizes(H, W, C, G, K, stride, dilation, where.Ho, where.Wo)


def aggregate(x: Array, sizes: Sizes, fill: Fill, source: tuple[Array, ...]) -> Array:
    """y: sum each pixel's window with the weights that fill finds for it."""
    N = x.shape[0]
    y = empty((N, sizes.Ho, sizes.Wo, sizes.C), x.dtype)
    tile = forward_tile(sizes, x.dtype, fill)
    kernel = _forward_kernel(numba_type(x.dtype), sizes, tile, fill)
    blocks = N * _tiles_of(tile, sizes.Ho, sizes.Wo, sizes.C // sizes.vector)
    launch(kernel, blocks, tile.block, x, source, y)
    return y


def kernel_gradient(dy: Array, x: Array, sizes: Sizes) -> Array:
    """dkernel (N, Ho, Wo, G, K, K)."""
    N, Ho, Wo, G, K = x.shape[0], sizes.Ho, sizes.Wo, sizes.G, sizes.K
    dkernel = empty((N, Ho, Wo, G, K, K), x.dtype)
    tile = kernel_tile(sizes, x.dtype)
    kernel = _kernel_gradient_kernel(numba_type(x.dtype), sizes, tile)
    launch(kernel, N * _tiles_of(tile, Ho, Wo, G * K), tile.block, dy, x, dkernel)
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
    tile = image_tile(sizes, dy.dtype, fill)
    kernel = _image_gradient_kernel(numba_type(dy.dtype), sizes, tile, fill, also is not None)
    blocks = N * _tiles_of(tile, sizes.H, sizes.W, sizes.C // sizes.vector)
    launch(kernel, blocks, tile.block, dy, source, dy if also is None else also, dx)
    return dx


@lru_cache
def forward_tile(sizes: Sizes, dtype: np.dtype, fill: Fill) -> Tile:
    """Outputs and channels of a block of the forward kernel."""
    taps = sizes.K**2

    def costs(tile: Tile) -> Costs:
        image, pixels = _under_windows(tile, sizes), tile.rows * tile.wide
        return Costs(
            image.size + _weights(tile, sizes).size + fill.extra(tile.wide),
            image.moved + pixels * (tile.groups * taps + SECTOR),
            _words(tile, sizes),
            _tiles_of(tile, sizes.Ho, sizes.Wo, sizes.C // sizes.vector),
        )

    return best_tile(_slab_tiles(sizes, sizes.Ho, sizes.Wo), costs, dtype)


@lru_cache
def image_tile(sizes: Sizes, dtype: np.dtype, fill: Fill) -> Tile:
    """Pixels and channels of a block of the kernel that makes dx."""
    taps = sizes.K**2

    def costs(tile: Tile) -> Costs:
        image, pixels = _over_pixels(tile, sizes), tile.rows * tile.wide
        return Costs(
            image.size + _weights(tile, sizes).size + fill.extra(image.across),
            image.moved + pixels * (tile.groups * taps + SECTOR),
            _words(tile, sizes._replace(stride=1)),
            _tiles_of(tile, sizes.H, sizes.W, sizes.C // sizes.vector),
        )

    return best_tile(_slab_tiles(sizes, sizes.H, sizes.W), costs, dtype)


@lru_cache
def kernel_tile(sizes: Sizes, dtype: np.dtype) -> Tile:
    """Its lanes are rows of taps, K of each group."""
    taps, per_group = sizes.K**2, sizes.C // sizes.G

    def costs(tile: Tile) -> Costs:
        images, pixels = _chunk(tile, sizes), tile.rows * tile.wide
        return Costs(
            max(sum(image.size for image in images), tile.rows * _sums_row(tile, taps)),
            sum(image.moved for image in images) * -(-per_group // CHANNELS)
            + pixels * (tile.groups * taps + SECTOR),
            (_columns(tile, sizes) + tile.pixels) * per_group,
            _tiles_of(tile, sizes.Ho, sizes.Wo, sizes.G * sizes.K),
        )

    most = max(1, min(sizes.G, CHANNELS // per_group))
    lanes = [(groups * sizes.K, groups) for groups in range(1, most + 1)]
    tiles = _tiles(lanes, sizes.Ho, sizes.Wo, TAP_PIXELS)
    return best_tile(tiles, costs, dtype)


class Costs(NamedTuple):
    """Of a tile: elements that it stages, and those that it moves there, in whole sectors; elements
    that a thread reads of the stage; and how many tiles an image has."""

    staged: int
    moved: int
    read: int
    tiles: int


def best_tile(tiles: Iterable[Tile], costs: Callable[[Tile], Costs], dtype: np.dtype) -> Tile:
    """Of those whose stage fits, the one that takes a multiprocessor the fewest cycles.

    It gets CACHED elements a cycle, and its shared memory serves a warp with one for each thread. A
    warp with a single thread takes as long as a full one. As many blocks take turns as there is
    room for. Each has to wait for what it fetches, and alone takes thrice as long as in turns with
    others. The constants are fitted to timings on an H200.
    """
    best, least = None, np.inf
    for tile in tiles:
        staged, moved, read, count = costs(tile)
        nbytes = staged * np.dtype(dtype).itemsize
        if nbytes > BLOCK_BYTES:
            continue
        warps = -(-tile.threads // WARP)
        resident = min(SHARED_BYTES // (nbytes + RESERVED_BYTES), MOST_WARPS // warps, MOST_BLOCKS)
        work = moved / CACHED + warps * read
        cycles = count * max(work, (FETCH_CYCLES + 3 * work) / max(1, resident))
        if cycles < least:
            best, least = tile, cycles
    if best is None:
        raise ValueError(
            "involution: the windows and weights of one pixel do not fit the "
            f"{BLOCK_BYTES} bytes of shared memory that the cuda backend stages them in: use a "
            "smaller kernel"
        )
    return best


def _tiles_of(tile: Tile, H: int, W: int, lanes: int) -> int:
    return -(-H // tile.rows) * -(-W // tile.wide) * -(-lanes // tile.lanes)


def _columns(tile: Tile, sizes: Sizes) -> int:
    """Columns of the image under the windows of a thread's pixels."""
    return (tile.pixels - 1) * sizes.stride + sizes.reach + 1


def _words(tile: Tile, sizes: Sizes) -> int:
    """What a thread reads of the stage to sum its windows: their pixels, and their weights."""
    return sizes.K * (sizes.vector * _columns(tile, sizes) + tile.pixels * sizes.K)


def _tiles(
    lanes_and_groups: Sequence[tuple[int, int]], H: int, W: int, pixels_of_thread: Sequence[int]
) -> Iterator[Tile]:
    for pixels in pixels_of_thread:
        for lanes, groups in lanes_and_groups:
            most = max(1, BLOCK // lanes)
            for strips in range(1, min(-(-W // pixels), most) + 1):
                for rows in range(1, min(H, most // strips, DEEPEST) + 1):
                    yield Tile(lanes, strips, rows, pixels, groups)


def _slab_tiles(sizes: Sizes, H: int, W: int) -> Iterator[Tile]:
    """Tiles whose lanes are vectors of channels."""

    def groups(lanes: int) -> int:
        slab, per_group = lanes * sizes.vector, sizes.C // sizes.G
        if slab >= sizes.C:
            return sizes.G
        if slab % per_group == 0 or per_group % slab == 0:
            return max(1, slab // per_group)
        return min(sizes.G, (slab - 2) // per_group + 2)

    most = min(sizes.C // sizes.vector, LANES)
    lanes = [(lanes, groups(lanes)) for lanes in range(1, most + 1)]
    return _tiles(lanes, H, W, PIXELS)


def _weights(tile: Tile, sizes: Sizes) -> Weights:
    weights = Weights(tile.rows, tile.wide, tile.groups, sizes.K, 0)
    return weights._replace(gap=_gap(weights.row, 1, weights.taps))


def _gap(step: int, times: int, wanted: int, unit: int = 1) -> int:
    """Elements, in whole units, that put the next row of threads into banks of its own.

    It reads `times` steps further on. With the gap that is, but for whole rounds of the banks, as
    far as wanted: to where the next strip would read.
    """
    gaps = range(0, BANKS, unit)
    return next((gap for gap in gaps if (times * (step + gap) - wanted) % BANKS == 0), 0)


def _under_windows(tile: Tile, sizes: Sizes) -> Image:
    """The image under the windows of the tile's outputs."""
    down, across = (
        (count - 1) * sizes.stride + sizes.reach + 1 for count in (tile.rows, tile.wide)
    )
    image = Image(down, across, tile.lanes * sizes.vector)
    wanted = tile.wide * sizes.stride * image.pixel
    return image._replace(gap=_gap(image.line, sizes.stride, wanted, 4))


def _over_pixels(tile: Tile, sizes: Sizes) -> Image:
    """The outputs whose windows can hold a pixel of the tile."""
    down, across = (
        (count - 1 + sizes.reach) // sizes.stride + 1 for count in (tile.rows, tile.wide)
    )
    image = Image(down, across, tile.lanes * sizes.vector)
    return image._replace(gap=_gap(image.line, 1, tile.wide * image.pixel, 4))


def _sums_row(tile: Tile, taps: int) -> int:
    """Elements from a tile's row of kernels in shared memory to the next.

    A warp has rows of taps of neighbouring pixel rows: with the gap they lie in banks of their own.
    """
    row = tile.wide * tile.groups * taps
    return row + _gap(row, 1, tile.groups * taps)


def _chunk(tile: Tile, sizes: Sizes) -> tuple[Image, Image]:
    """What dkernel's block reads at once: of the image, and of dy."""
    channels = tile.groups * min(sizes.C // sizes.G, CHANNELS)
    image = _under_windows(tile, sizes)._replace(channels=channels, gap=0)
    return image, Image(tile.rows, tile.wide, channels)


@lru_cache
def _read_weights(
    sizes: Sizes, dtype: Any, tile: Tile, meeting: Meeting, weights: Weights, start: int
) -> Callable:
    """A thread fetches one of an output's weights, and the same of further outputs.

    Neighbouring threads fetch neighbouring weights, wherever in the tile they belong.
    """
    Ho, Wo, G, K = sizes.Ho, sizes.Wo, sizes.G, sizes.K
    tile_rows, wide, threads = tile.rows, tile.wide, tile.threads
    row, taps, pixel = weights.row, weights.taps, weights.pixel
    _, across, stride, step, output_of, taps_of = meeting
    run, whole = tile.groups * K * K, G * K * K  # weights of an output, here and in memory
    parts = max(1, threads // run)  # of a row's outputs, where there are threads for several
    fetch, _ = fetching(1)

    @cuda.jit(device=True)
    def fill(stage, source, n, first_row, first_column, top, left, first_g, t):
        place_across = taps_of(first_column, left)[0]
        own = at(t) // run
        e = at(t - own * run)
        while own < parts and e < run:
            g, u, v = e // (K * K), e // K % K, e % K
            place = start + u * taps + g * K + v
            first = (n * Ho * Wo + left) * whole + first_g * (K * K) + e
            limit = at(Ho) if first_g + g < G else at(0)
            for j in range(own, across, parts):
                p = place_across + v * step + j * stride
                if at(p) < wide:
                    in_image = at(left + j) < Wo
                    to, of = place + p * pixel, first + j * whole
                    for r in range(tile_rows):
                        i, met = output_of(first_row, r, u, limit)
                        index = far(of + i * (Wo * whole))
                        fetch(stage, far(to + r * row), source[0], index, met and in_image)
            e = at(e + threads)

    return fill


READ = Fill(_read_weights, lambda across: 0)


@lru_cache
def _forward_meeting(sizes: Sizes, tile: Tile) -> Meeting:
    """A tile's pixels are outputs."""
    K = sizes.K

    @cuda.jit(device=True)
    def output_of(first, r, u, limit):
        i = first + r
        return i, at(i) < limit

    @cuda.jit(device=True)
    def taps_of(first, i):
        return i - first, 0, K

    return Meeting(tile.rows, tile.wide, 1, 0, output_of, taps_of)


@lru_cache
def _image_meeting(sizes: Sizes, tile: Tile) -> Meeting:
    """A tile's pixels are those of the image."""
    K, stride, dilation, before = sizes.K, sizes.stride, sizes.dilation, sizes.before
    tile_rows = tile.rows

    @cuda.jit(device=True)
    def output_of(first, r, u, limit):
        met = first + r + before - u * dilation
        if stride == 1:
            return met, at(met) < limit
        i = at(at(met) // stride)  # something huge where met is negative
        return i, at(met) % stride == 0 and i < limit

    @cuda.jit(device=True)
    def taps_of(first, i):
        place = i * stride - before - first
        lowest = max(0, -(place // dilation))
        return place, lowest, max(lowest, min(K, (tile_rows - 1 - place) // dilation + 1))

    part = _over_pixels(tile, sizes)
    return Meeting(part.down, part.across, stride, dilation, output_of, taps_of)


@lru_cache
def _own_tile(tile: Tile, H: int, W: int, lanes: int) -> Callable:
    """A function that returns a block's image, and the first row, column and lane of its tile."""
    slabs, across, down = -(-lanes // tile.lanes), -(-W // tile.wide), -(-H // tile.rows)
    tile_lanes, tile_rows, wide = tile.lanes, tile.rows, tile.wide

    @cuda.jit(device=True)
    def own_tile():
        pixels = at(cuda.blockIdx.x) // at(slabs)
        row = pixels // at(across)
        return (
            row // at(down),
            row % at(down) * tile_rows,
            pixels % at(across) * wide,
            at(cuda.blockIdx.x) % at(slabs) * tile_lanes,
        )

    return own_tile


@lru_cache
def _stage_image(sizes: tuple[int, int, int], part: Image, vector: int, threads: int) -> Callable:
    """A function by which all threads t of a block fetch part of an image into the stage.

    It begins at row top and column left of image n, with channel c, and takes channels below end.
    A thread goes down a column, so that it finds its place but once.
    """
    H, W, C = sizes
    down, across, channels, _ = part
    vectors, pixel_step, line = channels // vector, part.pixel, part.line
    wide = across * vectors
    parts = max(1, threads // wide)  # of the rows, where there are threads for several
    turns = -(-down // parts)
    fetch, _ = fetching(vector)

    @cuda.jit(device=True)
    def stage_image(stage, start, image, n, top, left, first_c, end, t):
        own = at(t) // at(wide) if parts > 1 else at(0)
        e = at(t - own * wide)
        while own < parts and e < wide:
            s, c = at(left + e // vectors), at(first_c + e % vectors * vector)
            limit = at(H) if s < W and c < end else at(0)
            first = ((n * H + top + own) * W + s) * C + c
            place = start + own * line + e // vectors * pixel_step + e % vectors * vector
            for turn in range(turns):
                row = turn * parts
                if row + parts <= down or at(own + row) < at(down):  # all but the last are there
                    to, of = far(place + row * line), far(first + row * (W * C))
                    fetch(stage, to, image, of, at(top + own + row) < limit)
            e = at(e + threads)

    return stage_image


@lru_cache
def _forward_kernel(dtype: Any, sizes: Sizes, tile: Tile, fill: Fill) -> Any:
    H, W, C, G, K, stride, dilation, Ho, Wo = sizes
    vector, before, per_group = sizes.vector, sizes.before, C // G
    lanes, strips, _, pixels, _ = tile
    part, weights = _under_windows(tile, sizes), _weights(tile, sizes)
    pixel_step, line = part.pixel, part.line
    start, weights_row, taps, weights_pixel = part.size, weights.row, weights.taps, weights.pixel
    columns = _columns(tile, sizes)
    owned, read = pixels * vector, columns * vector
    stage = staging(start + weights.size + fill.extra(tile.wide), dtype)
    own_tile = _own_tile(tile, Ho, Wo, C // vector)
    stage_image = _stage_image((H, W, C), part, vector, tile.threads)
    fill_weights = fill.make(sizes, dtype, tile, _forward_meeting(sizes, tile), weights, start)
    load, store = ACCESS[vector]
    _, fetched = fetching(vector)
    zero = dtype(0)

    @cuda.jit
    def involution(x, source, y):
        staged = stage()
        sums = cuda.local.array(owned, dtype)
        window = cuda.local.array(read, dtype)
        tx, ty, tz = cuda.threadIdx.x, cuda.threadIdx.y, cuda.threadIdx.z
        t = (tz * strips + ty) * lanes + tx
        n, first_i, first_j, first_lane = own_tile()
        first_c = first_lane * vector
        first_g = first_c // per_group
        top, left = first_i * stride - before, first_j * stride - before
        stage_image(staged, 0, x, n, top, left, first_c, C, t)
        fill_weights(staged, source, n, first_i, first_j, first_i, first_j, first_g, t)
        fetched()
        cuda.syncthreads()

        i, j, c = first_i + tz, first_j + ty * pixels, first_c + tx * vector
        if i >= Ho or j >= Wo or c >= C:
            return
        g = at(c) // per_group - first_g
        first = tz * stride * line + ty * pixels * stride * pixel_step + tx * vector
        first_weight = start + tz * weights_row + ty * pixels * weights_pixel + g * K
        for e in range(owned):
            sums[e] = zero
        for u in range(K):
            for column in range(columns):
                values = load(staged, far(first + u * dilation * line + column * pixel_step))
                for q in range(vector):
                    window[column * vector + q] = values[q]
            for p in range(pixels):
                for v in range(K):
                    weight = staged[far(first_weight + u * taps + p * weights_pixel + v)]
                    for q in range(vector):
                        column = p * stride + v * dilation
                        sums[p * vector + q] += weight * window[column * vector + q]
        first_y = ((n * Ho + i) * Wo + j) * C + c
        for p in range(pixels):
            if j + p < Wo:
                store(y, far(first_y + p * C), sums, p * vector)

    return involution


@lru_cache
def _image_gradient_kernel(dtype: Any, sizes: Sizes, tile: Tile, fill: Fill, has_also: bool) -> Any:
    H, W, C, G, K, stride, dilation, Ho, Wo = sizes
    vector, before, per_group = sizes.vector, sizes.before, C // G
    lanes, strips, _, pixels, _ = tile
    part = _over_pixels(tile, sizes)
    pixel_step, line, weights = part.pixel, part.line, _weights(tile, sizes)
    start, weights_row, taps, weights_pixel = part.size, weights.row, weights.taps, weights.pixel
    columns = pixels + sizes.reach  # outputs that a thread's pixels see in a row, stride 1
    ahead = before - sizes.reach + stride - 1  # of a pixel's first output, rounded up
    owned, read = pixels * vector, columns * vector
    stage = staging(start + weights.size + fill.extra(part.across), dtype)
    own_tile = _own_tile(tile, H, W, C // vector)
    stage_image = _stage_image((Ho, Wo, C), part, vector, tile.threads)
    fill_weights = fill.make(sizes, dtype, tile, _image_meeting(sizes, tile), weights, start)
    load, store = ACCESS[vector]
    _, fetched = fetching(vector)
    zero = dtype(0)

    @cuda.jit
    def involution_image_gradient(dy, source, also, dx):
        staged = stage()
        sums = cuda.local.array(owned, dtype)
        window = cuda.local.array(read, dtype)
        tx, ty, tz = cuda.threadIdx.x, cuda.threadIdx.y, cuda.threadIdx.z
        t = (tz * strips + ty) * lanes + tx
        n, first_r, first_s, first_lane = own_tile()
        first_c = first_lane * vector
        first_g = first_c // per_group
        # the first output whose window can hold the tile's first pixel, as its last tap
        top, left = (first_r + ahead) // stride, (first_s + ahead) // stride
        stage_image(staged, 0, dy, n, top, left, first_c, C, t)
        fill_weights(staged, source, n, first_r, first_s, top, left, first_g, t)
        fetched()
        cuda.syncthreads()

        r, s, c = first_r + tz, first_s + ty * pixels, first_c + tx * vector
        if r >= H or s >= W or c >= C:
            return
        g = at(c) // per_group - first_g
        first_weight = start + tz * weights_row + ty * pixels * weights_pixel + g * K
        for e in range(owned):
            sums[e] = zero
        for u in range(K):
            met = at(r + before - u * dilation)  # wraps where it is negative
            i = at(met // stride)
            if met % stride == 0 and i < Ho:
                own_line = (i - top) * line + tx * vector
                if stride == 1:
                    first = own_line + ty * pixels * pixel_step
                    for column in range(columns):
                        values = load(staged, far(first + column * pixel_step))
                        for q in range(vector):
                            window[column * vector + q] = values[q]
                    for p in range(pixels):
                        for v in range(K):
                            weight = staged[far(first_weight + u * taps + p * weights_pixel + v)]
                            for q in range(vector):
                                column = p + (K - 1 - v) * dilation
                                sums[p * vector + q] += weight * window[column * vector + q]
                else:
                    for p in range(pixels):
                        for v in range(K):
                            first = at(s + p + before - v * dilation)
                            j = at(first // stride)
                            if first % stride == 0 and j < Wo:
                                place = first_weight + u * taps + p * weights_pixel + v
                                weight = staged[far(place)]
                                values = load(staged, at(own_line + (j - left) * pixel_step))
                                for q in range(vector):
                                    sums[p * vector + q] += weight * values[q]
        first_dx = ((n * H + r) * W + s) * C + c
        for p in range(pixels):
            if s + p < W:
                if has_also:
                    i, j = at(r) // stride, at(s + p) // stride
                    high_cell = stride if (i + 1) * stride <= H else H - i * stride
                    across_cell = stride if (j + 1) * stride <= W else W - j * stride
                    values = load(also, at(((n * Ho + i) * Wo + j) * C + c))
                    for q in range(vector):
                        sums[p * vector + q] += values[q] / dtype(high_cell * across_cell)
                store(dx, far(first_dx + p * C), sums, p * vector)

    return involution_image_gradient


@lru_cache
def _add_products(sizes: Sizes, pixel_step: int, pixel: int, count: int) -> Callable:
    """What one vector of channels adds to the sums of `count` pixels, from `pixel` on.

    One after the other, twice half as many: none is a loop, and every sum stays in a register.
    """
    if count > 1:
        half = count // 2
        add_half = _add_products(sizes, pixel_step, pixel, half)
        add_others = _add_products(sizes, pixel_step, pixel + half, count - half)

        @cuda.jit(device=True)
        def add_products(staged, first_dy, window, sums):
            add_half(staged, first_dy, window, sums)
            add_others(staged, first_dy, window, sums)

        return add_products

    K, stride, dilation, vector = sizes.K, sizes.stride, sizes.dilation, sizes.vector
    load, _ = ACCESS[vector]

    @cuda.jit(device=True)
    def add_pixel(staged, first_dy, window, sums):
        dy = load(staged, far(first_dy + pixel * pixel_step))
        for v in range(K):
            for q in range(vector):
                column = pixel * stride + v * dilation
                sums[pixel * K + v] += dy[q] * window[column * vector + q]

    return add_pixel


@lru_cache
def _kernel_gradient_kernel(dtype: Any, sizes: Sizes, tile: Tile) -> Any:
    H, W, C, G, K, stride, dilation, Ho, Wo = sizes
    vector, before, per_group = sizes.vector, sizes.before, C // G
    lanes, strips, tile_rows, pixels, groups = tile
    wide, threads = tile.wide, tile.threads
    part, part_dy = _chunk(tile, sizes)
    pixel_step, line, line_dy = part.pixel, part.line, part_dy.line
    start_dy = part.size
    channels = part.channels // groups  # of a group, at once
    taps = K * K
    run = groups * taps  # of a pixel
    columns = _columns(tile, sizes)
    read, weighed = columns * vector, pixels * K
    together, even = min(8, tile_rows), Ho % tile_rows == 0
    sums_row = _sums_row(tile, taps)
    stage = staging(max(part.size + part_dy.size, tile_rows * sums_row), dtype)
    own_tile = _own_tile(tile, Ho, Wo, G * K)
    stage_image = _stage_image((H, W, C), part, vector, threads)
    stage_dy = _stage_image((Ho, Wo, C), part_dy, vector, threads)
    add_products = _add_products(sizes, pixel_step, 0, pixels)
    load, _ = ACCESS[vector]
    _, fetched = fetching(vector)
    zero = dtype(0)

    @cuda.jit
    def involution_kernel_gradient(dy, x, dkernel):
        staged = stage()
        sums = cuda.local.array(weighed, dtype)
        window = cuda.local.array(read, dtype)
        leaving = cuda.local.array(together, dtype)
        tx, ty, tz = cuda.threadIdx.x, cuda.threadIdx.y, cuda.threadIdx.z
        u, g = at(tx) % K, at(tx) // K
        t = (tz * strips + ty) * lanes + tx
        n, first_i, first_j, first_lane = own_tile()
        first_g = first_lane // K
        top, left = first_i * stride - before, first_j * stride - before
        end = min(C, (first_g + groups) * per_group)
        first = (tz * stride + u * dilation) * line + ty * pixels * stride * pixel_step
        first_dy = start_dy + tz * line_dy + ty * pixels * pixel_step
        for e in range(weighed):
            sums[e] = zero
        for first_c in range(0, per_group, channels):
            c = first_g * per_group + first_c
            cuda.syncthreads()
            stage_image(staged, 0, x, n, top, left, c, end, t)
            stage_dy(staged, start_dy, dy, n, first_i, first_j, c, end, t)
            fetched()
            cuda.syncthreads()
            for k in range(0, channels, vector):
                own = g * channels + k
                for column in range(columns):
                    values = load(staged, far(first + own + column * pixel_step))
                    for q in range(vector):
                        window[column * vector + q] = values[q]
                add_products(staged, first_dy + own, window, sums)
        cuda.syncthreads()
        first_sum = tz * sums_row + (ty * pixels * groups + g) * taps + u * K
        for p in range(pixels):
            for v in range(K):
                staged[far(first_sum + p * run + v)] = sums[p * K + v]
        cuda.syncthreads()
        e = at(t)
        while e < wide * run:
            k, j = at(e % run), at(first_j + e // run)
            if j < Wo and k < at((G - first_g) * taps):
                first = (((n * Ho + first_i) * Wo + j) * G + first_g) * taps + k
                for first_r in range(0, tile_rows, together):
                    for r in range(together):  # all are read before one is waited for
                        row = first_r + r if first_r + r < tile_rows else tile_rows - 1
                        leaving[r] = staged[far(e + row * sums_row)]
                    for r in range(together):
                        row = first_r + r
                        if row < tile_rows and (even or at(first_i + row) < at(Ho)):
                            dkernel[far(first + row * (Wo * G * taps))] = leaving[r]
            e = at(e + threads)

    return involution_kernel_gradient
