"""Addition, y = a + b: a thread owns four neighbours at a time."""

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.device import at, cuda, launch_over, load4, store4
from scratchnet.checks import check_float_array, check_like


def add_forward(a: Array, b: Array) -> Array:
    """a, b of one shape and dtype  ->  y alike."""
    a, b = on_device(a, b)
    check_float_array("add", "a", a)
    check_like("add", "b", b, a.shape, a.dtype)
    y = empty(a.shape, a.dtype)
    launch_over(-(-y.size // 4), _add, a, b, y, y.size)
    return y


def add_backward(dy: Array) -> tuple[Array, Array]:
    """dy  ->  da = dy, db = dy."""
    dy = on_device(dy)
    check_float_array("add", "dy", dy)
    return dy, dy


@cuda.jit
def _add(a, b, y, size, fours):
    for four in range(cuda.grid(1), fours, cuda.gridsize(1)):
        first = 4 * four
        if first + 4 <= size:
            p, q = load4(a, at(first)), load4(b, at(first))
            store4(y, at(first), p[0] + q[0], p[1] + q[1], p[2] + q[2], p[3] + q[3])
        else:
            for e in range(first, size):
                y[at(e)] = a[at(e)] + b[at(e)]
