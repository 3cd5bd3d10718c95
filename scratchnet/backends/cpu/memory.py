"""Memory for results, used again as soon as nobody holds it.

`empty` hands out an array over a block of bytes that the pool keeps. Once no array refers to the
block any more, the next request of that size gets it again, so that a training step allocates
nothing after the first, and the operators stay pure functions that return new arrays.

Why not leave it to NumPy: large fresh memory comes from the operating system page by page, and
each page is cleared, at its first touch, inside the kernel that writes it. For small layers these
page faults cost more than the arithmetic. The price is memory: sizes are rounded up by at most an
eighth, and a block that nobody wants stays for IDLE to 2 * IDLE requests more.
"""

import math
import sys
import threading

import numpy as np

ALIGNMENT = 64  # bytes: a cache line, and the widest vector
SMALLEST = 4096  # bytes: below a page, the C library's own free lists do the same
IDLE = 4096  # requests after which free blocks are looked through, and the unused ones dropped

_lock = threading.Lock()
_blocks: dict[int, list["_Block"]] = {}  # by size in bytes
_requests = 0


class _Block:
    """Bytes of the pool. Arrays made over them hold `memory` as their base, never each other."""

    __slots__ = ("memory", "start", "last_request")

    def __init__(self, size: int):
        self.memory = np.empty(size + ALIGNMENT, np.uint8)
        self.start = -self.memory.ctypes.data % ALIGNMENT
        self.last_request = 0

    def references(self) -> int:
        return sys.getrefcount(self.memory)


_UNREFERENCED = _Block(0).references()  # what the block itself and the question count for


def empty(shape: int | tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
    """A C-contiguous array of undefined contents, aligned to a cache line where it is large.

    The memory goes back to the pool when the array and all views of it are gone. Any thread may
    call this.
    """
    global _requests
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < SMALLEST:
        return np.empty(shape, dtype)
    size = _rounded(nbytes)
    with _lock:
        _requests += 1
        if _requests % IDLE == 0:
            _forget_idle_blocks()
        blocks = _blocks.setdefault(size, [])
        for block in blocks:
            if block.references() == _UNREFERENCED:
                break
        else:
            block = _Block(size)
            blocks.append(block)
        block.last_request = _requests
        return np.ndarray(shape, dtype, block.memory, block.start)


def zeros(shape: int | tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
    """Like `empty`, filled with 0."""
    array = empty(shape, dtype)
    array.fill(0)
    return array


def _rounded(nbytes: int) -> int:
    """Up to the next of eight sizes between two powers of two, so that near sizes share blocks."""
    step = 1 << (nbytes.bit_length() - 4)
    return -(-nbytes // step) * step


def _forget_idle_blocks() -> None:
    for blocks in _blocks.values():
        blocks[:] = [
            block
            for block in blocks
            if _requests - block.last_request < IDLE or block.references() > _UNREFERENCED
        ]
