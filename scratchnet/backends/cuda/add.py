"""Addition, y = a + b: a thread owns one element at a time."""

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.device import at, cuda, launch_over
from scratchnet.checks import check_float_array, check_like


def add_forward(a: Array, b: Array) -> Array:
    """a, b of one shape and dtype  ->  y alike."""
    a, b = on_device(a, b)
    check_float_array("add", "a", a)
    check_like("add", "b", b, a.shape, a.dtype)
    y = empty(a.shape, a.dtype)
    launch_over(y.size, _add, a, b, y)
    return y


def add_backward(dy: Array) -> tuple[Array, Array]:
    """dy  ->  da = dy, db = dy."""
    dy = on_device(dy)
    check_float_array("add", "dy", dy)
    return dy, dy


@cuda.jit
def _add(a, b, y, count):
    for e in range(cuda.grid(1), count, cuda.gridsize(1)):
        y[at(e)] = a[at(e)] + b[at(e)]
