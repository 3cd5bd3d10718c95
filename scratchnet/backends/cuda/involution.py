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

A thread owns a vector of 4 channels (1 where groups do not divide into fours) of PIXELS
neighbouring pixels, and neighbouring threads own neighbouring vectors. For each row of the window
it reads PIXELS + K - 1 vectors into registers and uses them for PIXELS * K taps.

`dx` asks another question: a pixel wants of every window that it lies in another tap. Gathered by
the pixel, weights come from K * K places. So a block goes down the image instead: it fetches a row
of outputs with all their weights, as they lie in memory, while it uses the row before last. A
thread adds what a row of outputs sends to the K rows of its pixels, whose sums it holds; then the
first of them is complete, and leaves. A block fetches each weight once, and uses it at once.

In `dkernel` a thread owns one row of taps of PIXELS pixels and one group, and sums over the group's
channels in registers; sums gather in shared memory, and leave in order. No atomics.

Memory hands out and takes in 32 bytes at once, a sector. Two copies of 16 bytes to shared memory
are one only if they share a sector there too, so what is staged keeps its place in the sector. And
where one group's taps end and the next one's begin, two blocks want the same sector: neighbouring
blocks own the same pixels and other channels, so that their parts meet in the cache. Of a sector
that comes to memory in parts, it has to read the rest before it can write it.

Where the staged weights come from is a `Fill`: here they are read, in `generated_involution.py`
they are made on the spot, and never written to memory at all.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from scratchnet.backends.cuda.arrays import Array, empty, on_device
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
    fetching,
    launch,
    numba_type,
    rounds_of_fetches,
    staging,
)
from scratchnet.checks import check_involution, check_like
from scratchnet.geometry import Geometry

BLOCK = 16 if SIMULATED else 256  # threads, at most
PIXELS = (2, 1) if SIMULATED else (4, 1)  # of a thread, in a row
IMAGE_PIXELS = (2, 1) if SIMULATED else (4, 2, 1)  # of a thread of dx, in a row
LANES = 4 if SIMULATED else 32  # threads along the channels, at most
DEEPEST = 64  # threads that a block may have along its third axis
WARP = BANKS = 32  # threads that run together, numbers that shared memory hands out at once
CHANNELS = 4 if SIMULATED else 16  # of a group, that dkernel's blocks take at once
MOST_WARPS, MOST_BLOCKS = 28, 32  # of a multiprocessor
BUSY_WARPS = 8  # of a multiprocessor, that keep memory busy with dx
FETCH_CYCLES = 1000  # that a block waits for memory
SECTOR = 8  # numbers that memory hands out at once
REGISTERS = 64  # of a thread, for sums and what it multiplies
CHUNK = 4  # weights that a thread fetches at once
CACHED = 8  # numbers that the L2 cache gives a multiprocessor in a cycle


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
    """Part of an image in shared memory: down x across pixels of so many channels.

    Every `apart` pixels, where a thread's window begins and the next one's does, is a gap, so that
    the two are read from different banks.
    """

    down: int
    across: int
    channels: int
    apart: int
    gap: int = 0  # elements behind each row

    @property
    def strip(self) -> int:
        """Elements from a thread's window to the next."""
        strip = self.apart * self.channels
        return strip + (BANKS // 2 if self.channels % BANKS == 16 and strip % BANKS == 0 else 0)

    @property
    def line(self) -> int:
        """Elements from a row to the next."""
        strips, rest = divmod(self.across - 1, self.apart)
        return _up(strips * self.strip + (rest + 1) * self.channels, SECTOR) + self.gap

    @property
    def size(self) -> int:
        return self.down * self.line

    @property
    def moved(self) -> int:
        """Elements that memory hands out for it."""
        return self.down * self.across * _up(self.channels, SECTOR)


class Weights(NamedTuple):
    """Weights of a row of outputs in shared memory: [output, group, u, v], as in memory.

    They are fetched in fours where every output has whole fours in memory. An output's first weight
    is then any of its four, and an output takes room for whole fours.
    """

    across: int  # outputs
    apart: int  # of them, from those of a thread to those of the next
    groups: int
    taps: int  # of a group
    whole: int  # weights of an output in memory
    gap: int = 0  # elements behind the row

    @property
    def chunk(self) -> int:
        """Elements fetched at once."""
        return 1 if self.whole % CHUNK else CHUNK

    @property
    def chunks(self) -> int:
        """Of an output, wherever its first weight lies in a chunk."""
        own = self.groups * self.taps
        return -(-(own + (self.chunk - 1 if own < self.whole else 0)) // self.chunk)

    @property
    def output(self) -> int:
        """Elements from an output to the next, as many as in memory but for whole sectors."""
        room = self.chunks * self.chunk
        return room + (self.whole - room) % SECTOR if self.chunk > 1 else room

    @property
    def strip(self) -> int:
        """Elements from a thread's outputs to the next one's, which are in different banks."""
        strip = self.apart * self.output
        return strip + (SECTOR if self.chunk > 1 and strip % (2 * SECTOR) == 0 else 0)

    @property
    def size(self) -> int:
        """Of the row, which begins as far behind a sector's first element as it does in memory."""
        strips, rest = divmod(self.across - 1, self.apart)
        return _up(strips * self.strip + (rest + 1) * self.output + SECTOR, SECTOR) + self.gap


class Strip(NamedTuple):
    """Outputs that meet a row of a thread's pixels: from column `first` on, counted from its own.

    Its own begin at every `outputs` columns.
    """

    outputs: int
    first: int
    columns: int


class Fill(NamedTuple):
    """Where weights come from.

    ahead                                                        rows of weights that are on their
               way while one is used
    make(sizes, dtype, weights, rows, threads, spare, cleared)   gives the device function
               fill(stage, start, source, n, i, left, first_g, t), which all threads t of a block
               call. It stages the weights of so many rows of outputs behind stage[start]; the
               first output is (i, left), the first group first_g. Columns outside of the image
               get something finite, or keep what they have where the stage was cleared
    extra(across)                                                how many more elements of the
               stage it wants, for so many columns of outputs: stage[spare] and those behind
    """

    ahead: int
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
    stripes = N * _tiles_of(tile, 1, sizes.W, sizes.C // sizes.vector)
    rows = _rows(stripes, tile, sizes)
    blocks = stripes * -(-sizes.H // rows)
    launch(kernel, blocks, tile.block[:2], dy, source, dy if also is None else also, dx, rows)
    return dx


@lru_cache
def _rows(stripes: int, tile: Tile, sizes: Sizes) -> int:
    """Rows of dx that a block makes, so that so many stripes of the image end soonest.

    Every block also goes through the rows of outputs that only reach into its own. Few warps keep
    memory busy, and less than those leave it idle.
    """
    enough = MULTIPROCESSORS * -(-BUSY_WARPS * WARP // tile.threads)

    def work(rows: int) -> int:
        return max(enough, stripes * -(-sizes.H // rows)) * (rows + sizes.reach)

    return min((-(-sizes.H // parts) for parts in range(1, sizes.H + 1)), key=work)


@lru_cache
def forward_tile(sizes: Sizes, dtype: np.dtype, fill: Fill) -> Tile:
    """Outputs and channels of a block of the forward kernel."""
    taps = sizes.K**2

    def costs(tile: Tile) -> Costs:
        image, pixels = _under_windows(tile, sizes), tile.rows * tile.wide
        weights = _weights(tile, sizes)
        return Costs(
            image.size + tile.rows * weights.size + fill.extra(tile.wide),
            image.moved + pixels * (tile.groups * taps + SECTOR),
            sizes.K * sizes.vector * _columns(tile, sizes)
            + tile.pixels * taps * _weight_turns(tile, sizes, weights),
            _tiles_of(tile, sizes.Ho, sizes.Wo, sizes.C // sizes.vector),
        )

    return best_tile(_slab_tiles(sizes, sizes.Ho, sizes.Wo), costs, dtype)


@lru_cache
def image_tile(sizes: Sizes, dtype: np.dtype, fill: Fill) -> Tile:
    """Pixels of a row and channels of a block of the kernel that makes dx."""
    taps, stride, vector = sizes.K**2, sizes.stride, sizes.vector

    def costs(tile: Tile) -> Costs:
        dy, weights = _over_pixels(tile, sizes)
        strip = _strip(tile.pixels, sizes)
        return Costs(
            (ahead + 1) * (dy.size + weights.size) + fill.extra(dy.across),
            dy.moved + dy.across * (tile.groups * taps + SECTOR) + stride * tile.wide * dy.channels,
            vector * strip.columns + strip.outputs * taps * _weight_turns(tile, sizes, weights),
            sizes.Ho * _tiles_of(tile, 1, sizes.W, sizes.C // vector),
        )

    ring, ahead = max(sizes.reach + 1, stride), _ahead(sizes, fill)
    some = [stride * times for times in IMAGE_PIXELS]
    kept = [pixels for pixels in some
            if (ring * pixels + _strip(pixels, sizes).columns) * vector <= REGISTERS]  # fmt: skip
    most = kept[0] if kept else some[-1]
    return best_tile(_slab_tiles(sizes, 1, sizes.W, [most]), costs, dtype)


@lru_cache
def kernel_tile(sizes: Sizes, dtype: np.dtype) -> Tile:
    """Its lanes are rows of taps, K of each group."""
    taps, per_group = sizes.K**2, sizes.C // sizes.G

    def costs(tile: Tile) -> Costs:
        image, dy = _chunk(tile, sizes)
        pixels, columns, windows = tile.rows * tile.wide, _columns(tile, sizes), []
        for t in range(min(WARP, tile.threads)):
            strip, lane = divmod(t, tile.lanes)
            row, strip = divmod(strip, tile.strips)
            row = row * sizes.stride + lane % sizes.K * sizes.dilation
            swap = row // 4 % 2 * 4
            windows.append(row * image.line + strip * image.strip + swap)
        turns = _turns(windows, sizes.vector) * columns + sizes.vector * tile.pixels
        return Costs(
            max(image.size + dy.size, tile.rows * _sums(tile, sizes).size),
            (image.moved + dy.moved) * -(-per_group // CHANNELS)
            + pixels * (tile.groups * taps + SECTOR),
            turns * per_group // sizes.vector,
            _tiles_of(tile, sizes.Ho, sizes.Wo, sizes.G * sizes.K),
        )

    most = max(1, min(sizes.G, CHANNELS // per_group))
    lanes = [(groups * sizes.K, groups) for groups in range(1, most + 1)]
    tiles = _tiles(lanes, sizes.Ho, sizes.Wo, PIXELS)
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
    room for. Each has to wait for what it fetches, and alone takes six times as long as in turns
    with others. The constants are fitted to timings on an H200.
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
        cycles = count * max(work, (FETCH_CYCLES + 6 * work) / max(1, resident))
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


def _tiles(
    lanes_and_groups: Sequence[tuple[int, int]], H: int, W: int, pixels_of_thread: Sequence[int]
) -> Iterator[Tile]:
    for pixels in pixels_of_thread:
        for lanes, groups in lanes_and_groups:
            most = max(1, BLOCK // lanes)
            for strips in range(1, min(-(-W // pixels), most) + 1):
                for rows in range(1, min(H, most // strips, DEEPEST) + 1):
                    yield Tile(lanes, strips, rows, pixels, groups)


def _slab_tiles(
    sizes: Sizes, H: int, W: int, pixels_of_thread: Sequence[int] = PIXELS
) -> Iterator[Tile]:
    """Tiles whose lanes are vectors of channels: of a part of a group, or of whole groups."""
    per_group = sizes.C // sizes.G
    slabs = range(sizes.vector, min(sizes.C, LANES * sizes.vector) + 1, sizes.vector)
    lanes = [
        (slab // sizes.vector, max(1, slab // per_group))
        for slab in slabs
        if slab % per_group == 0 or per_group % slab == 0
    ]
    return _tiles(lanes, H, W, pixels_of_thread)


def _weights(tile: Tile, sizes: Sizes) -> Weights:
    """Of a row of the tile's outputs."""
    taps = sizes.K**2
    weights = Weights(tile.wide, tile.pixels, tile.groups, taps, sizes.G * taps)
    return weights._replace(gap=_gap(weights.size, 1, tile.strips * weights.strip, SECTOR))


def _weight_turns(tile: Tile, sizes: Sizes, weights: Weights) -> int:
    """Turns that shared memory takes to give each thread of a warp a weight."""

    def place(t: int) -> int:
        strip, lane = divmod(t, tile.lanes)
        row, strip = divmod(strip, tile.strips)
        g = lane * sizes.vector * sizes.G // sizes.C
        return row * weights.size + strip * weights.strip + g * weights.taps

    return _turns([place(t) for t in range(min(WARP, tile.threads))], 1)


def _turns(places: Sequence[int], vector: int) -> int:
    """Turns that shared memory takes to serve a warp, whose threads ask for vectors at places.

    In each it serves as many threads as it has banks for vectors. Threads that ask for the same
    are served at once, those that ask a bank for different ones one after the other.
    """
    banks, turns = BANKS // vector, 0
    for first in range(0, len(places), banks):
        asked = defaultdict(set)
        for place in places[first : first + banks]:
            asked[place // vector % banks].add(place)
        turns += max(map(len, asked.values()))
    return turns


def _gap(step: int, times: int, wanted: int, unit: int) -> int:
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
    image = Image(down, across, tile.lanes * sizes.vector, tile.pixels * sizes.stride)
    wanted = tile.strips * image.strip
    return image._replace(gap=_gap(image.line, sizes.stride, wanted, SECTOR))


def _strip(pixels: int, sizes: Sizes) -> Strip:
    last = (pixels - 1 + sizes.before) // sizes.stride
    first = -((sizes.reach - sizes.before) // sizes.stride)
    return Strip(pixels // sizes.stride, first, last - first + 1)


def _over_pixels(tile: Tile, sizes: Sizes) -> tuple[Image, Weights]:
    """A row of the outputs whose windows can hold a pixel of the tile, and of their weights."""
    strip = _strip(tile.pixels, sizes)
    across = (tile.strips - 1) * strip.outputs + strip.columns
    weights = _weights(tile, sizes)._replace(across=across, apart=strip.outputs, gap=0)
    return Image(1, across, tile.lanes * sizes.vector, strip.outputs), weights


def _ahead(sizes: Sizes, fill: Fill) -> int:
    """Rows of outputs that dx's blocks fetch ahead: as many as fill likes, one where K is large."""
    row = sizes.K * sizes.K**2 * np.dtype(np.float64).itemsize
    return fill.ahead if (fill.ahead + 1) * row <= BLOCK_BYTES else 1


def _sums(tile: Tile, sizes: Sizes) -> Weights:
    """A row of the tile's gradients in shared memory, from where they leave.

    A warp has rows of taps of neighbouring rows of pixels: with the gap those of four of them lie
    in banks of their own.
    """
    sums = _weights(tile, sizes)._replace(gap=0)
    return sums._replace(gap=_gap(sums.size, 1, _up(sizes.K, 4), 4))


def _chunk(tile: Tile, sizes: Sizes) -> tuple[Image, Image]:
    """What dkernel's block reads at once: of the image, and of dy.

    Four rows of either start in different banks.
    """
    channels = tile.groups * min(sizes.C // sizes.G, CHANNELS)
    image = _under_windows(tile, sizes)._replace(channels=channels, gap=0)
    dy = Image(tile.rows, tile.wide, channels, tile.pixels)
    image, dy = (
        part._replace(gap=SECTOR if part.line % (2 * SECTOR) == 0 else 0) for part in (image, dy)
    )
    return image, dy


def _up(count: int, unit: int) -> int:
    """The next whole number of units."""
    return -(-count // unit) * unit


@lru_cache
def finder(of: Image | Weights, each: int) -> Callable:
    """A device function that finds a column in a row of the stage, counted from any strip's first.

    Where the column is known before the kernel runs, so is what it returns.
    """
    apart, strip = of.apart, of.strip

    @cuda.jit(device=True)
    def place_of(column):
        column = at(column)
        return column // at(apart) * strip + column % at(apart) * each

    return place_of


@lru_cache
def leader(sizes: Sizes, in_fours: bool) -> Callable:
    """A device function that tells how many elements before a row's first one a sector begins.

    Copies of two neighbours become one where both lie in one sector here and there; so what is
    fetched in fours keeps its place in the sector.
    """
    Ho, Wo, taps, of_output = sizes.Ho, sizes.Wo, sizes.K**2, sizes.G * sizes.K**2

    @cuda.jit(device=True)
    def lead(n, i, left, first_g):
        first = at(((n * Ho + i) * Wo + left) * of_output + first_g * taps)
        return first % at(SECTOR) if in_fours else at(0)

    return lead


@lru_cache
def _read_weights(
    sizes: Sizes, dtype: Any, weights: Weights, rows: int, threads: int, spare: int, cleared: bool
) -> Callable:
    """Neighbouring threads fetch neighbouring chunks, wherever in the row they belong."""
    Ho, Wo, G, taps = sizes.Ho, sizes.Wo, sizes.G, sizes.K**2
    across, groups, whole, chunk, chunks = (
        weights.across, weights.groups, weights.whole, weights.chunk, weights.chunks,
    )  # fmt: skip
    row, turns = weights.size, -(-across * chunks // threads)
    place_of, lead_of = finder(weights, weights.output), leader(sizes, chunk > 1)
    fetch = fetching(chunk)

    @cuda.jit(device=True)
    def fill(stage, start, source, n, i, left, first_g, t):
        before = at(first_g * taps) % chunk  # of a chunk, weights of other groups
        end = min(groups, G - first_g) * taps + before
        for turn in range(turns):
            e = at(t + turn * threads)
            j, k = e // at(chunks), e % at(chunks) * chunk
            inside = at(left + j) < Wo
            if j < across and k < end and (inside or not cleared):
                place = start + place_of(j) + k - before
                first = ((n * Ho + i) * Wo + left + j) * whole + first_g * taps + k - before
                for r in range(rows):
                    if rows == 1 or at(i + r) < Ho:
                        to = far(place + r * row + lead_of(n, i + r, left, first_g))
                        fetch(stage, to, source[0], far(first + r * (Wo * whole)), inside)

    return fill


READ = Fill(2, _read_weights, lambda across: 0)


@lru_cache
def _own_tile(tile: Tile, H: int, W: int, lanes: int) -> Callable:
    """A function that returns a block's image, and the first row, column and lane of its tile."""
    slabs, across = -(-lanes // tile.lanes), -(-W // tile.wide)
    tile_lanes, wide = tile.lanes, tile.wide

    @cuda.jit(device=True)
    def own_tile(rows):
        down = at(at(H + rows - 1) // at(rows))
        pixels = at(cuda.blockIdx.x) // at(slabs)
        row = pixels // at(across)
        return (
            row // down,
            row % down * rows,
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
    down, across, channels = part[:3]
    vectors, line, place_of = channels // vector, part.line, finder(part, channels)
    wide = across * vectors
    parts = max(1, threads // wide)  # of the rows, where there are threads for several
    turns, turns_across = -(-down // parts), -(-wide // threads)
    fetch = fetching(vector)

    @cuda.jit(device=True)
    def stage_image(stage, start, image, n, top, left, first_c, end, t):
        own = at(t) // at(wide) if parts > 1 else at(0)
        for turn_across in range(turns_across):
            e = at(t - own * wide + turn_across * threads)
            if own < parts and e < wide:
                s, c = at(left + e // vectors), at(first_c + e % vectors * vector)
                limit = at(H) if s < W and c < end else at(0)
                first = ((n * H + top + own) * W + s) * C + c
                place = start + own * line + place_of(e // vectors) + e % vectors * vector
                for turn in range(turns):
                    row = turn * parts
                    if row + parts <= down or at(own + row) < at(
                        down
                    ):  # all but the last are there
                        to, of = far(place + row * line), far(first + row * (W * C))
                        fetch(stage, to, image, of, at(top + own + row) < limit)

    return stage_image


@lru_cache
def _forward_kernel(dtype: Any, sizes: Sizes, tile: Tile, fill: Fill) -> Any:
    H, W, C, G, K, stride, dilation, Ho, Wo = sizes
    vector, before, per_group = sizes.vector, sizes.before, C // G
    lanes, strips, tile_rows, pixels, _ = tile
    part, weights = _under_windows(tile, sizes), _weights(tile, sizes)
    strip, line, weights_strip, weights_row = part.strip, part.line, weights.strip, weights.size
    taps, start = K * K, part.size
    spare = start + tile_rows * weights_row
    column_of, output_of = finder(part, part.channels), finder(weights, weights.output)
    lead_of = leader(sizes, weights.chunk > 1)
    columns = _columns(tile, sizes)
    owned, read = pixels * vector, columns * vector
    stage = staging(spare + fill.extra(tile.wide), dtype)
    own_tile = _own_tile(tile, Ho, Wo, C // vector)
    stage_image = _stage_image((H, W, C), part, vector, tile.threads)
    fill_weights = fill.make(sizes, dtype, weights, tile_rows, tile.threads, spare, False)
    load, store = ACCESS[vector]
    end_round, fetched = rounds_of_fetches(0)
    zero = dtype(0)

    @cuda.jit
    def involution(x, source, y):
        staged = stage()
        sums = cuda.local.array(owned, dtype)
        window = cuda.local.array(read, dtype)
        tx, ty, tz = cuda.threadIdx.x, cuda.threadIdx.y, cuda.threadIdx.z
        t = (tz * strips + ty) * lanes + tx
        n, first_i, first_j, first_lane = own_tile(tile_rows)
        first_c = first_lane * vector
        first_g = first_c // per_group
        top, left = first_i * stride - before, first_j * stride - before
        stage_image(staged, 0, x, n, top, left, first_c, C, t)
        fill_weights(staged, start, source, n, first_i, first_j, first_g, t)
        end_round()
        fetched()
        cuda.syncthreads()

        i, j, c = first_i + tz, first_j + ty * pixels, first_c + tx * vector
        if i >= Ho or j >= Wo or c >= C:
            return
        g = at(c) // per_group - first_g
        first = tz * stride * line + ty * strip + tx * vector
        first_weight = start + tz * weights_row + ty * weights_strip + g * taps
        first_weight += lead_of(n, i, first_j, first_g)
        for e in range(owned):
            sums[e] = zero
        for u in range(K):
            for column in range(columns):
                values = load(staged, far(first + u * dilation * line + column_of(column)))
                for q in range(vector):
                    window[column * vector + q] = values[q]
            for p in range(pixels):
                for v in range(K):
                    weight = staged[far(first_weight + output_of(p) + u * K + v)]
                    for q in range(vector):
                        column = p * stride + v * dilation
                        sums[p * vector + q] += weight * window[column * vector + q]
        first_y = ((n * Ho + i) * Wo + j) * C + c
        for p in range(pixels):
            if j + p < Wo:
                store(y, far(first_y + p * C), sums, p * vector)

    return involution


def _one_by_one(make: Callable, first: int, count: int) -> Callable:
    """A device function (staged, place, window, sums) that is make(first), make(first + 1), ...

    Twice half as many: none is a loop, and every sum stays in a register.
    """
    if count == 1:
        return make(first)
    half = count // 2
    some, others = _one_by_one(make, first, half), _one_by_one(make, first + half, count - half)

    @cuda.jit(device=True)
    def all_of_them(staged, place, window, sums):
        some(staged, place, window, sums)
        others(staged, place, window, sums)

    return all_of_them


def _add_taps(sizes: Sizes, pixels: int, weights: Weights, u: int) -> Callable:
    """What outputs i add to the row of pixels r that they meet by their taps u: the term u of dx,

    dx[n,r,s,c] += sum_v dy[n,i,j(s,v),c] * kernel[n,i,j(s,v),g(c),u,v]
    """
    K, stride, dilation, before = sizes.K, sizes.stride, sizes.dilation, sizes.before
    vector, output_of = sizes.vector, finder(weights, weights.output)
    _, first, _ = _strip(pixels, sizes)
    behind = -first * stride + before  # makes what is divided by the stride positive

    @cuda.jit(device=True)
    def add_row(staged, first_weight, window, sums):
        for p in range(pixels):
            for v in range(K):
                if (p + behind - v * dilation) % stride == 0:
                    column = (p + behind - v * dilation) // stride
                    weight = staged[far(first_weight + output_of(column) + u * K + v)]
                    for q in range(vector):
                        e = (u * dilation * pixels + p) * vector + q
                        sums[e] += weight * window[column * vector + q]

    return add_row


@lru_cache
def _image_gradient_kernel(dtype: Any, sizes: Sizes, tile: Tile, fill: Fill, has_also: bool) -> Any:
    H, W, C, G, K, stride, dilation, Ho, Wo = sizes
    vector, before, per_group = sizes.vector, sizes.before, C // G
    lanes, strips, _, pixels, groups = tile
    part, weights = _over_pixels(tile, sizes)
    strip, weights_strip, taps = part.strip, weights.strip, K * K
    _, first_column, columns = _strip(pixels, sizes)
    column_of, lead_of = finder(part, part.channels), leader(sizes, weights.chunk > 1)
    ring = max(sizes.reach + 1, stride)  # rows of dx that are not complete
    line, read = pixels * vector, columns * vector
    owned = ring * line
    start, stretch, ahead = part.size, part.size + weights.size, _ahead(sizes, fill)
    held = (ahead + 1) * stretch
    stage = staging(held + fill.extra(weights.across), dtype)
    own_tile = _own_tile(tile, H, W, C // vector)
    stage_image = _stage_image((Ho, Wo, C), part, vector, tile.threads)
    fill_weights = fill.make(sizes, dtype, weights, 1, tile.threads, held, True)
    add_taps = _one_by_one(partial(_add_taps, sizes, pixels, weights), 0, K)
    load, store = ACCESS[vector]
    _, store_four = ACCESS[4]
    end_round, fetched = rounds_of_fetches(ahead - 1)
    threads = tile.threads
    zero = dtype(0)

    @cuda.jit
    def involution_image_gradient(dy, source, also, dx, rows):
        staged = stage()
        sums = cuda.local.array(owned, dtype)
        window = cuda.local.array(read, dtype)
        nothing = cuda.local.array(4, dtype)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        t = ty * lanes + tx
        n, first_r, first_s, first_lane = own_tile(rows)
        first_c = first_lane * vector
        first_g = first_c // per_group
        end_r = min(H, first_r + rows)
        left = first_s // stride + first_column
        s, c = first_s + ty * pixels, first_c + tx * vector
        own = tx * vector + ty * strip
        g = min(at(c) // per_group - first_g, groups - 1)
        first_weight = start + ty * weights_strip + g * taps
        for e in range(owned):
            sums[e] = zero
        for q in range(4):
            nothing[q] = zero
        e = at(4 * t)
        while e < held:
            store_four(staged, e, nothing, 0)
            e = at(e + 4 * threads)
        cuda.syncthreads()
        # the first output that meets the block's rows, or lies before them, and the last one
        i = max(0, min(-((before - first_r) // stride), (first_r + before) // stride))
        last = (end_r - 1 + before) // stride
        for further in range(ahead):
            if i + further < Ho and i + further <= last:
                free = further * stretch
                stage_image(staged, free, dy, n, i + further, left, first_c, C, t)
                fill_weights(staged, free + start, source, n, i + further, left, first_g, t)
            end_round()
        now, free = 0, ahead * stretch
        while i <= last:
            fetched()
            cuda.syncthreads()
            if i + ahead < Ho and i + ahead <= last:
                stage_image(staged, free, dy, n, i + ahead, left, first_c, C, t)
                fill_weights(staged, free + start, source, n, i + ahead, left, first_g, t)
            end_round()
            if i < Ho:
                for column in range(columns):
                    values = load(staged, far(now + own + column_of(column)))
                    for q in range(vector):
                        window[column * vector + q] = values[q]
                lead = lead_of(n, i, left, first_g)
                add_taps(staged, now + first_weight + lead, window, sums)
            for u in range(stride):  # no further output meets these rows
                r = i * stride - before + u
                if r >= first_r and r < end_r and c < C:
                    first_dx = ((n * H + r) * W + s) * C + c
                    for p in range(pixels):
                        if s + p < W:
                            place = u * line + p * vector
                            if has_also:
                                own_i, j = at(r) // stride, at(s + p) // stride
                                cell = min(stride, H - own_i * stride) * min(stride, W - j * stride)
                                values = load(also, at(((n * Ho + own_i) * Wo + j) * C + c))
                                for q in range(vector):
                                    sums[place + q] += values[q] / dtype(cell)
                            store(dx, far(first_dx + p * C), sums, place)
            for e in range(owned):
                further = e + stride * line
                sums[e] = sums[further] if further < owned else zero
            free, now = now, now + stretch if now + stretch < held else 0
            i += 1

    return involution_image_gradient


def _add_products(sizes: Sizes, dy_step: int, pixel: int) -> Callable:
    """What one vector of channels adds to a row u of taps of a thread's pixel j: of dkernel,

    dkernel[n,i,j,g,u,v] += sum_c dy[n,i,j,c] * x[n, r(i,u), s(j,v), c]
    """
    K, stride, dilation, vector = sizes.K, sizes.stride, sizes.dilation, sizes.vector
    load, _ = ACCESS[vector]

    @cuda.jit(device=True)
    def add_pixel(staged, first_dy, window, sums):
        dy = load(staged, far(first_dy + pixel * dy_step))
        for v in range(K):
            for q in range(vector):
                column = pixel * stride + v * dilation
                sums[pixel * K + v] += dy[q] * window[column * vector + q]

    return add_pixel


@lru_cache
def _leave(tile: Tile, sizes: Sizes, length: int) -> Callable:
    """A function by which a thread sends `length` neighbours of every row of a tile to memory."""
    rows, sums_row, row_of_kernels = (
        tile.rows,
        _sums(tile, sizes).size,
        sizes.Wo * sizes.G * sizes.K**2,
    )
    together, Ho = min(8, rows), sizes.Ho
    even = Ho % rows == 0
    load, store = ACCESS[length]

    @cuda.jit(device=True)
    def leave(staged, place, dkernel, first, first_i, leaving):
        for first_r in range(0, rows, together):
            for r in range(together):  # all are read before one is waited for
                row = first_r + r if first_r + r < rows else rows - 1
                values = load(staged, far(place + row * sums_row))
                for q in range(length):
                    leaving[r * length + q] = values[q]
            for r in range(together):
                row = first_r + r
                if row < rows and (even or at(first_i + row) < at(Ho)):
                    store(dkernel, far(first + row * row_of_kernels), leaving, r * length)

    return leave


@lru_cache
def _kernel_gradient_kernel(dtype: Any, sizes: Sizes, tile: Tile) -> Any:
    H, W, C, G, K, stride, dilation, Ho, Wo = sizes
    vector, before, per_group = sizes.vector, sizes.before, C // G
    lanes, strips, tile_rows, pixels, groups = tile
    wide, threads = tile.wide, tile.threads
    part, part_dy = _chunk(tile, sizes)
    strip, line, strip_dy, line_dy = part.strip, part.line, part_dy.strip, part_dy.line
    column_of = finder(part, part.channels)
    start_dy = part.size
    channels = part.channels // groups  # of a group, at once
    swapped = 4 if channels % 8 == 0 and vector == 4 else 0
    taps = K * K
    columns = _columns(tile, sizes)
    read, weighed = columns * vector, pixels * K
    gradients = _sums(tile, sizes)
    sums_row, chunk, chunks, whole = (
        gradients.size,
        gradients.chunk,
        gradients.chunks,
        gradients.whole,
    )
    sums_of, leave, leave_one = (
        finder(gradients, gradients.output), _leave(tile, sizes, chunk), _leave(tile, sizes, 1),
    )  # fmt: skip
    held = min(8, tile_rows) * chunk
    stage = staging(max(part.size + part_dy.size, tile_rows * sums_row), dtype)
    own_tile = _own_tile(tile, Ho, Wo, G * K)
    stage_image = _stage_image((H, W, C), part, vector, threads)
    stage_dy = _stage_image((Ho, Wo, C), part_dy, vector, threads)
    add_products = _one_by_one(partial(_add_products, sizes, part_dy.channels), 0, pixels)
    load, _ = ACCESS[vector]
    end_round, fetched = rounds_of_fetches(0)
    zero = dtype(0)

    @cuda.jit
    def involution_kernel_gradient(dy, x, dkernel):
        staged = stage()
        sums = cuda.local.array(weighed, dtype)
        window = cuda.local.array(read, dtype)
        leaving = cuda.local.array(held, dtype)
        tx, ty, tz = cuda.threadIdx.x, cuda.threadIdx.y, cuda.threadIdx.z
        u, g = at(tx) % K, at(tx) // K
        t = (tz * strips + ty) * lanes + tx
        n, first_i, first_j, first_lane = own_tile(tile_rows)
        first_g = first_lane // K
        top, left = first_i * stride - before, first_j * stride - before
        end = min(C, (first_g + groups) * per_group)
        row = tz * stride + u * dilation
        first, first_dy = row * line + ty * strip, start_dy + tz * line_dy + ty * strip_dy
        swap = at(row) // 4 % 2 * swapped  # so that four rows find the banks that four others left
        for e in range(weighed):
            sums[e] = zero
        for first_c in range(0, per_group, channels):
            c = first_g * per_group + first_c
            cuda.syncthreads()
            stage_image(staged, 0, x, n, top, left, c, end, t)
            stage_dy(staged, start_dy, dy, n, first_i, first_j, c, end, t)
            end_round()
            fetched()
            cuda.syncthreads()
            for k in range(0, channels, vector):
                own = g * channels + (k ^ swap)
                for column in range(columns):
                    values = load(staged, far(first + own + column_of(column)))
                    for q in range(vector):
                        window[column * vector + q] = values[q]
                add_products(staged, first_dy + own, window, sums)
        cuda.syncthreads()
        skipped = at(first_g * taps) % chunk  # of the first sum, in its chunk
        first_sum = tz * sums_row + sums_of(ty * pixels) + skipped + g * taps + u * K
        for p in range(pixels):
            for v in range(K):
                staged[far(first_sum + sums_of(p) + v)] = sums[p * K + v]
        cuda.syncthreads()
        end = min(groups, G - first_g) * taps + skipped
        first_of = (n * Ho + first_i) * Wo + first_j
        e = at(t)
        while e < wide * chunks:
            j, k = at(e // chunks), at(e % chunks * chunk)
            if at(first_j + j) < Wo and k >= skipped and k + chunk <= end:
                first = (first_of + j) * whole + first_g * taps + k - skipped
                leave(staged, sums_of(j) + k, dkernel, first, first_i, leaving)
            e = at(e + threads)
        if chunk > 1:  # what is left at both ends, at most three numbers
            e = at(t)
            while e < wide * 6:
                j, k = at(e // 6), at(e % 6)
                inside = k < 3 and k < (chunk - skipped) % chunk or k >= 3 and k - 3 < end % chunk
                k = skipped + k if k < 3 else end - end % chunk + k - 3
                if at(first_j + j) < Wo and inside:
                    first = (first_of + j) * whole + first_g * taps + k - skipped
                    leave_one(staged, sums_of(j) + k, dkernel, first, first_i, leaving)
                e = at(e + threads)

    return involution_kernel_gradient
