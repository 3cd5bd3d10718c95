"""Arrays from recycled memory, so that a warm training step asks the system for none.

Fresh memory costs a page fault every 4 KiB when it is first written, about as much as the whole
arithmetic of a small layer. A pool keeps its blocks: a block is free again when no array refers to
it any more, which CPython's reference counts tell at once. The functions of the backend stay pure,
nobody hands buffers around, and a gradient's memory serves the next layer's gradient.

A request takes the smallest free block of at least its size and at most twice that. Blocks that
stayed idle over the last `PATIENCE` requests are given back when a new one is needed.
"""

import bisect
import math
import sys
import threading

import numpy as np

ALIGNMENT = 64  # a cache line, and the widest vector
SMALL = 1024  # bytes up to which the system's own allocator is as good
PATIENCE = 4096


class _Block:
    """Bytes that arrays may be views of, and the number of the request that last took them."""

    __slots__ = ("memory", "offset", "size", "taken")

    def __init__(self, size: int):
        self.memory = np.empty(size + ALIGNMENT, np.uint8)
        self.offset = -self.memory.ctypes.data % ALIGNMENT
        self.size = size
        self.taken = 0

    def references(self) -> int:
        return sys.getrefcount(self.memory)


# What an idle block counts: the way of asking adds references of its own.
_IDLE = _Block(0).references()


class Pool:
    """Blocks in the order of their sizes."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []
        self.requests = 0
        self.lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
        """An array of that shape and dtype with any content, C-contiguous and aligned."""
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size <= SMALL:
            return np.empty(shape, dtype)
        with self.lock:
            self.requests += 1
            block = self._free_block(size) or self._new_block(size)
            block.taken = self.requests
            return np.frombuffer(block.memory, dtype, math.prod(shape), block.offset).reshape(shape)

    def _free_block(self, size: int) -> _Block | None:
        first = bisect.bisect_left(self.blocks, size, key=_size)
        for block in self.blocks[first:]:
            if block.size > 2 * size:
                break
            if block.references() == _IDLE:
                return block
        return None

    def _new_block(self, size: int) -> _Block:
        old = self.requests - PATIENCE
        self.blocks = [b for b in self.blocks if b.taken > old or b.references() != _IDLE]
        block = _Block(size)
        bisect.insort(self.blocks, block, key=_size)
        return block


def _size(block: _Block) -> int:
    return block.size


empty = Pool().empty
