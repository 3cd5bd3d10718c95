"""Optimizer steps in place, for a whole network in a few launches; the equations stand in
`backends/reference/updates.py`.

A network has tens of parameters, most of them tiny, and a launch each would cost more than all the
arithmetic. Parameters and an optimizer's memory lie side by side in buffers (`arrays.pack`), so a
kernel takes three or four arrays for all of them, and finds the start of each by a table. Only
gradients are arrays of their own: a launch takes up to AT_ONCE of them. A thread owns one element
at a time.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from scratchnet.backends.cuda.arrays import Array, to_device
from scratchnet.backends.cuda.device import MOST_BLOCKS, THREADS, at, cuda, launch, numba_type
from scratchnet.backends.cuda.recording import Changing, changed, readable
from scratchnet.checks import check_step, check_update

AT_ONCE = 16


def sgd_update(
    value: Array,
    grad: Array,
    velocity: Array,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """One step of gradient descent with momentum; value and velocity change."""
    settings = lr, momentum, nesterov, weight_decay
    update_each(sgd_update, [value], [grad], [[velocity]], settings)


def adam_update(
    value: Array,
    grad: Array,
    m: Array,
    v: Array,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """Step number `step` (from 1) of Adam, or of AdamW if decoupled; value, m and v change."""
    settings = step, lr, beta1, beta2, eps, weight_decay, decoupled
    update_each(adam_update, [value], [grad], [[m], [v]], settings)


def update_each(
    update: Callable,
    values: Sequence[Array],
    grads: Sequence[Array],
    memories: Sequence[Sequence[Array]],
    settings: tuple | Changing,
) -> None:
    """update(value, grad, *memory, *settings) for every parameter; memories are lists like values.

    Parameters that share a buffer, and whose memory does likewise, change in one launch.
    """
    for array in (*values, *(array for memory in memories for array in memory)):
        if isinstance(array, np.ndarray):
            raise TypeError(f"{update.__name__} works in place: its arrays must be on the GPU")
    values = [to_device(value) for value in values]
    grads = [to_device(grad) for grad in grads]
    memories = [[to_device(array) for array in memory] for memory in memories]
    rule = _SGD if update is sgd_update else _ADAM
    for value, *others in zip(values, grads, *memories, strict=True):
        check_update(update.__name__, value, **dict(zip(rule.reads, others, strict=True)))
    flag = (settings.draw() if isinstance(settings, Changing) else settings)[rule.flag]
    numbers = changed(rule.numbers, settings)
    for run in _runs([values, *memories]):
        first = values[run.start]
        buffers = tuple(arrays[run.start].buffer for arrays in (values, *memories))
        table = _table(tuple((value.start, value.size) for value in values[run]))
        largest = max(value.size for value in values[run])
        blocks = min(-(-largest // THREADS), MOST_BLOCKS), run.stop - run.start
        kernel = rule.kernel(numba_type(first.dtype), flag)
        read = readable(numbers, rule.count, first.dtype)
        launch(kernel, blocks, THREADS, *buffers, tuple(grads[run]), table, read)


def _runs(columns: Sequence[Sequence[Array]]) -> list[slice]:
    """Pieces of neighbouring parameters, at most AT_ONCE, that a kernel can take together."""

    def place(i: int) -> tuple:
        arrays = [column[i] for column in columns]
        starts = {array.start for array in arrays}
        return len(starts) == 1, arrays[0].dtype, [id(array.owner) for array in arrays]

    places = [place(i) for i in range(len(columns[0]))]
    runs = []
    for i, own in enumerate(places):
        run = runs[-1] if runs else None
        if run and own[0] and run.stop - run.start < AT_ONCE and own == places[run.start]:
            runs[-1] = slice(run.start, i + 1)
        else:
            runs.append(slice(i, i + 1))
    return runs


@lru_cache
def _table(places: tuple[tuple[int, int], ...]) -> Array:
    """Start and size of each parameter, where a kernel can read them."""
    return to_device(np.array(places, np.int64))


def _sgd_numbers(lr: float, momentum: float, nesterov: bool, weight_decay: float) -> tuple:
    return lr, momentum, weight_decay


def _adam_numbers(
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> tuple:
    check_step("adam_update", step)
    factors = lr, beta1, 1 - beta1, beta2, 1 - beta2, eps, weight_decay
    return *factors, 1 / (1 - beta1**step), 1 / (1 - beta2**step)


@lru_cache
def _sgd_kernel(dtype: Any, nesterov: bool) -> Any:
    @cuda.jit
    def sgd_update(value, velocity, grads, table, numbers):
        lr, momentum, weight_decay = numbers[0], numbers[1], numbers[2]
        parameter = cuda.blockIdx.y
        start, size = table[2 * parameter], table[2 * parameter + 1]
        grad = grads[parameter]
        for e in range(cuda.grid(1), size, cuda.gridsize(1)):
            k = at(start + e)
            g = grad[at(e)] + weight_decay * value[k]
            speed = momentum * velocity[k] + g
            velocity[k] = speed
            value[k] -= lr * (g + momentum * speed if nesterov else speed)

    return sgd_update


@lru_cache
def _adam_kernel(dtype: Any, decoupled: bool) -> Any:
    one = dtype(1)

    @cuda.jit
    def adam_update(value, m, v, grads, table, numbers):
        lr, beta1, rest1 = numbers[0], numbers[1], numbers[2]
        beta2, rest2, eps = numbers[3], numbers[4], numbers[5]
        weight_decay, up1, up2 = numbers[6], numbers[7], numbers[8]
        parameter = cuda.blockIdx.y
        start, size = table[2 * parameter], table[2 * parameter + 1]
        grad = grads[parameter]
        for e in range(cuda.grid(1), size, cuda.gridsize(1)):
            k = at(start + e)
            g = grad[at(e)]
            if not decoupled:
                g += weight_decay * value[k]
            m[k] = beta1 * m[k] + rest1 * g
            v[k] = beta2 * v[k] + rest2 * g * g
            kept = one - lr * weight_decay if decoupled else one
            value[k] = value[k] * kept - lr * (m[k] * up1) / (math.sqrt(v[k] * up2) + eps)

    return adam_update


class _Rule(NamedTuple):
    """How to take an update's settings."""

    reads: tuple[str, ...]  # the arrays beside the value
    kernel: Callable  # makes it for a dtype and the one setting that is compiled in
    flag: int  # that setting's place
    numbers: Callable  # what the kernel reads, from all of them
    count: int


_SGD = _Rule(("grad", "velocity"), _sgd_kernel, 2, _sgd_numbers, 3)
_ADAM = _Rule(("grad", "m", "v"), _adam_kernel, 6, _adam_numbers, 9)
