"""How the parallel loops of this backend cut their work, and what they may reorder.

A loop over many elements is cut into CHUNKS pieces, however many threads there are. Each piece
writes its own part of the output, or its own row of partial sums, which are then added in order:
the bits do not depend on the number of threads.

The threads are OpenMP's. One that waits for the others spins, by GNU OpenMP's default for
milliseconds, and keeps its core from them if the machine has other work to do: next to one busy
process, small layers then take a hundred times as long. Spinning is worth it for as long as waking
up takes, which is microseconds.
"""

import importlib
import math
import os

import numpy as np
from numba import njit

CHUNKS = 16
SPINS = "1000"  # of a waiting thread, before it goes to sleep: tens of microseconds


def _load_openmp() -> None:
    """Load Numba's OpenMP with SPINS, which it reads once and then; the environment stays."""
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        return
    os.environ["GOMP_SPINCOUNT"] = SPINS
    try:
        importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:
        pass  # another threading layer takes its place
    finally:
        del os.environ["GOMP_SPINCOUNT"]


_load_openmp()

# What sums of products may assume: any order, fused multiply-adds. NaN and infinity keep their
# meaning. Not for a maximum, a variance or a loss. Nor for a sum in a function that a compiled one
# calls: each compiles it for itself, may choose another order, and which of the two runs depends on
# what the process took from the cache.
SUMS = {"reassoc", "contract", "nsz", "arcp", "afn"}


@njit(cache=True)
def piece(total, chunk):
    """The first element of a chunk and the one after its last."""
    return chunk * total // CHUNKS, (chunk + 1) * total // CHUNKS


def flat(array: np.ndarray) -> np.ndarray:
    """The elements in memory order: (size,), a view where the array is contiguous."""
    return np.ascontiguousarray(array).reshape(-1)


def channel_rows(x: np.ndarray) -> tuple[np.ndarray, int]:
    """(..., C) as rows (M / r, r * C), and r: few channels are widened, to fill a vector.

    The r copies of a channel are summed side by side, and folded into one by `fold`.
    """
    C = x.shape[-1]
    M = math.prod(x.shape[:-1])
    r = 1
    while r * C < 16 and M % (2 * r) == 0:
        r *= 2
    return np.ascontiguousarray(x).reshape(M // r, r * C), r


def fold(partial: np.ndarray, r: int) -> np.ndarray:
    """Partial sums (CHUNKS, r * C) added up, in order: (C,)."""
    return partial.reshape(-1, partial.shape[1] // r).sum(axis=0)
