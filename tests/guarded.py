"""Every operator of the cpu backend on arrays that end where memory ends: to read or write behind
one of them ends this process. `test_operators.py` runs it.
"""

import ctypes
import mmap

import numpy as np
from cases import CASES, SHARED_OUT
from checks import cast, cotangent_like, run_backward, run_forward

from scratchnet.backends import OPERATORS, cpu

PAGE, NO_ACCESS = mmap.PAGESIZE, 0
_protect = ctypes.CDLL(None).mprotect


def at_the_end(value):
    """A copy of an array, right before a page that must not be touched; anything else as it is."""
    if not isinstance(value, np.ndarray) or not value.nbytes:
        return value
    size = -(-value.nbytes // PAGE) * PAGE
    pages = mmap.mmap(-1, size + PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert _protect(ctypes.c_void_p(start + size), PAGE, NO_ACCESS) == 0
    copy = np.frombuffer(pages, value.dtype, value.size, size - value.nbytes).reshape(value.shape)
    copy[...] = value
    return copy


def guarded(values):
    return {name: at_the_end(value) for name, value in values.items()}


for operator in OPERATORS:
    print(operator, flush=True)
    case = CASES[operator]
    shared_out = [sizes for name, sizes in SHARED_OUT if name == operator]
    for dtype in (np.float32, np.float64):
        for sizes in (*case.nasties, case.large, *shared_out):
            arguments = guarded(cast(case.draw(sizes), dtype))
            outputs = run_forward(cpu, operator, arguments)
            cotangent = cotangent_like(next(iter(outputs.values())), 1)
            run_backward(cpu, operator, arguments, guarded(outputs), at_the_end(cotangent))
print("done")
