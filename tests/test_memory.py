"""The cpu backend's pool: memory is used again, and not kept for ever."""

import numpy as np
import pytest

from scratchnet.backends.cpu import memory


@pytest.fixture
def kept(monkeypatch):
    """The pool's blocks by size, empty at first, in a pool that is tidied every eight requests."""
    monkeypatch.setattr(memory, "_blocks", {})
    monkeypatch.setattr(memory, "_requests", 0)
    monkeypatch.setattr(memory, "IDLE", 8)
    return memory._blocks


def test_memory_is_used_again_once_nobody_holds_it(kept):
    first = memory.empty((40, 50), np.float32)
    address = first.ctypes.data
    view = first[3:]
    del first
    second = memory.empty((40, 50), np.float32)
    assert second.ctypes.data != address
    view[...] = 1
    second[...] = 2
    assert (view == 1).all()
    del view
    assert memory.empty((50, 40), np.float32).ctypes.data == address


def test_what_nobody_wants_is_dropped_even_if_all_requests_are_met(kept):
    del_soon, held = memory.empty(10_000, np.float32), memory.empty(20_000, np.float32)
    del del_soon
    for _ in range(20):
        memory.empty(5_000, np.float32)  # always met by the same block
    sizes = {size for size, blocks in kept.items() if blocks}
    assert sizes == {memory._rounded(80_000), memory._rounded(20_000)}
    assert held.size == 20_000
