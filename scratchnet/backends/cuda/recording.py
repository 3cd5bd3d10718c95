"""A step whose launches are noted once, and from then on started together.

A launch from Python takes about 10 us, and most kernels of a small network less: the GPU waits for
the host. Started as one CUDA graph, a step takes the time of its kernels. They do the same again,
with what stands in the same memory by then:

    inputs      are copied into arrays that the recording owns
    numbers     that are others at every step, as a learning rate or the seed of a mask, are asked
                for with `changing`, drawn anew at each replay, and read from an array
    arrays      that the step makes get memory that nobody else is given as long as the recording
                lives; what the step returns is copied out of it. What comes from the host gets
                memory that no other array of the step has had

While it is recorded, a step has not run: nothing of it can be read from the GPU, and what Python
decides in it stays decided. Where there are no CUDA graphs (in the simulator, and with the target
that Numba has built in) the launches are started one by one.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from scratchnet.backends.cuda.arrays import Array, Pool, copy_into, empty, from_pool, to_device
from scratchnet.backends.cuda.device import at, cuda, launch_over, noting, started_together

CELLS = 64  # numbers that come to the GPU with one copy


class _Thread(threading.local):
    recording: "_Recording | None" = None  # under way


_thread = _Thread()


class Changing:
    """What `draw` returns, `now`: something else at each replay."""

    def __init__(self, draw: Callable[[], Any]):
        self.draw = draw
        self.now: Any = None


def changing(draw: Callable[[], Any]) -> Any:
    """What draw() returns; in a recording, a `Changing` that draws at every replay instead."""
    if _thread.recording is None:
        return draw()
    drawn = Changing(draw)
    _thread.recording.drawn.append(drawn)
    return drawn


def changed(function: Callable[..., tuple], given: Any) -> Any:
    """function(*given), at each replay if given is `Changing`."""
    if isinstance(given, Changing):
        return changing(lambda: function(*given.now))
    return function(*given)


def readable(given: Any, count: int, dtype: np.dtype) -> tuple | Array:
    """A number, or a tuple of `count`, as kernels index it: a tuple, or an array if `Changing`."""
    if isinstance(given, Changing):
        return _thread.recording.cells(given, count, dtype)
    return tuple(dtype.type(number) for number in (given if isinstance(given, tuple) else (given,)))


def recorded(step: Callable[..., tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
    """The same step, recorded when it is first asked to take inputs of some shapes and dtypes.

    step      takes arrays on the GPU, and returns some
    returns   a function that takes NumPy arrays, and returns copies of what the step returns
    """
    recordings: dict[tuple, _Recording] = {}

    def replay(*inputs: np.ndarray) -> tuple[Array, ...]:
        kinds = tuple((array.shape, array.dtype) for array in inputs)
        if kinds not in recordings:
            recordings[kinds] = _Recording(step, inputs)
        return recordings[kinds].replay(inputs)

    return replay


class _Recording:
    def __init__(self, step: Callable[..., tuple[Array, ...]], inputs: tuple[np.ndarray, ...]):
        self.pool = Pool()
        if _thread.recording is not None:
            raise RuntimeError("recorded: a step that is being recorded cannot record another one")
        self.drawn: list[Changing] = []
        self.blocks: list[_Cells] = []
        _thread.recording = self
        try:
            with from_pool(self.pool), noting() as launches:
                self.inputs = [empty(array.shape, array.dtype) for array in inputs]
                self.outputs = step(*self.inputs)
        finally:
            _thread.recording = None
        self.start = started_together(launches)

    def __del__(self):
        self.pool.close()

    def replay(self, inputs: tuple[np.ndarray, ...]) -> tuple[Array, ...]:
        for own, given in zip(self.inputs, inputs, strict=True):
            copy_into(own, given)
        for drawn in self.drawn:
            drawn.now = drawn.draw()
        for block in self.blocks:
            block.upload()
        self.start()
        return tuple(_copy_of(output) for output in self.outputs)

    def cells(self, given: Changing, count: int, dtype: np.dtype) -> Array:
        """Where `count` numbers will stand."""
        for block in self.blocks:
            if block.fits(count, dtype):
                return block.take(given, count)
        self.blocks.append(_Cells(max(count, CELLS), dtype))
        return self.blocks[-1].take(given, count)


class _Cells:
    """Numbers of one dtype that come to the GPU at each replay."""

    def __init__(self, size: int, dtype: np.dtype):
        self.numbers = np.zeros(size, dtype)
        self.array = to_device(self.numbers)
        self.taken: list[tuple[Changing, slice]] = []

    @property
    def used(self) -> int:
        return self.taken[-1][1].stop if self.taken else 0

    def fits(self, count: int, dtype: np.dtype) -> bool:
        return self.numbers.dtype == dtype and self.used + count <= self.numbers.size

    def take(self, given: Changing, count: int) -> Array:
        place = slice(self.used, self.used + count)
        self.taken.append((given, place))
        memory = self.array.memory[place]
        return Array((count,), self.array.dtype, memory, self.array.owner, place.start)

    def upload(self) -> None:
        for given, place in self.taken:
            self.numbers[place] = given.now
        copy_into(self.array, self.numbers)


def _copy_of(array: Array) -> Array:
    copy = empty(array.shape, array.dtype)
    launch_over(array.size, _copy, array, copy)
    return copy


@cuda.jit
def _copy(source, target, count):
    for e in range(cuda.grid(1), count, cuda.gridsize(1)):
        target[at(e)] = source[at(e)]
