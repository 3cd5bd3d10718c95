"""Matrix products inside a compiled loop, of blocks that a loop has just made.

    c[i, j] (+)= sum_k a[i, k] * b[k, j]

Eight rows and a vector of c stay in registers while k runs, so that a number of b that is loaded
meets eight of a. The matrices lie in flat arrays, each from its own first element on: b and c with
contiguous rows, a with any two steps, so that it may be a transposed one. Bounds are not checked.
"""

from numba import literally, njit

from scratchnet.backends.cpu.vectors import broadcast, fma, load, splat, store

STEP = 16  # columns of c come in multiples of this
WIDE = 32  # and are taken by so many where there are enough
ONE_WIDE = 64  # in the rows that no eight share: more sums, as one sum waits for itself


@njit(cache=True)
def multiply(a, a0, a_row, a_step, b, b0, b_row, c, c0, c_row, rows, inner, columns, add):
    """a (rows, inner) @ b (inner, columns), set to c or added to it."""
    eights = rows // 8 * 8
    j = 0
    while j + WIDE <= columns:
        _panel(a, a0, a_row, a_step, b, b0 + j, b_row, c, c0 + j, c_row, eights, inner, add, WIDE)
        j += WIDE
    if j < columns:
        _panel(a, a0, a_row, a_step, b, b0 + j, b_row, c, c0 + j, c_row, eights, inner, add, STEP)
    for i in range(eights, rows):
        ai, ci = a0 + i * a_row, c0 + i * c_row
        j = 0
        while j + ONE_WIDE <= columns:
            _one_row(a, ai, a_step, b, b0 + j, b_row, c, ci + j, inner, add, ONE_WIDE)
            j += ONE_WIDE
        while j < columns:
            _one_row(a, ai, a_step, b, b0 + j, b_row, c, ci + j, inner, add, STEP)
            j += STEP


@njit(cache=True)
def _panel(a, a0, a_row, a_step, b, b0, b_row, c, c0, c_row, rows, inner, add, lanes):
    lanes = literally(lanes)
    for i in range(0, rows, 8):
        ai, ci = a0 + i * a_row, c0 + i * c_row
        _eight_rows(a, ai, a_row, a_step, b, b0, b_row, c, ci, c_row, inner, add, lanes)


@njit(cache=True)
def _eight_rows(a, a0, a_row, a_step, b, b0, b_row, c, c0, c_row, inner, add, lanes):
    lanes = literally(lanes)
    i1, i2, i3, i4, i5, i6, i7 = (
        a_row, 2 * a_row, 3 * a_row, 4 * a_row, 5 * a_row, 6 * a_row, 7 * a_row,
    )  # fmt: skip
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = splat(c.dtype.type(0), lanes)
    if add:
        s0 = load(c, c0, lanes)
        s1 = load(c, c0 + c_row, lanes)
        s2 = load(c, c0 + 2 * c_row, lanes)
        s3 = load(c, c0 + 3 * c_row, lanes)
        s4 = load(c, c0 + 4 * c_row, lanes)
        s5 = load(c, c0 + 5 * c_row, lanes)
        s6 = load(c, c0 + 6 * c_row, lanes)
        s7 = load(c, c0 + 7 * c_row, lanes)
    for k in range(inner):
        b_k, i0 = load(b, b0 + k * b_row, lanes), a0 + k * a_step
        s0 = fma(broadcast(a, i0, lanes), b_k, s0)
        s1 = fma(broadcast(a, i0 + i1, lanes), b_k, s1)
        s2 = fma(broadcast(a, i0 + i2, lanes), b_k, s2)
        s3 = fma(broadcast(a, i0 + i3, lanes), b_k, s3)
        s4 = fma(broadcast(a, i0 + i4, lanes), b_k, s4)
        s5 = fma(broadcast(a, i0 + i5, lanes), b_k, s5)
        s6 = fma(broadcast(a, i0 + i6, lanes), b_k, s6)
        s7 = fma(broadcast(a, i0 + i7, lanes), b_k, s7)
    store(c, c0, s0)
    store(c, c0 + c_row, s1)
    store(c, c0 + 2 * c_row, s2)
    store(c, c0 + 3 * c_row, s3)
    store(c, c0 + 4 * c_row, s4)
    store(c, c0 + 5 * c_row, s5)
    store(c, c0 + 6 * c_row, s6)
    store(c, c0 + 7 * c_row, s7)


@njit(cache=True)
def _one_row(a, a0, a_step, b, b0, b_row, c, c0, inner, add, lanes):
    lanes = literally(lanes)
    total = splat(c.dtype.type(0), lanes)
    if add:
        total = load(c, c0, lanes)
    for k in range(inner):
        total = fma(broadcast(a, a0 + k * a_step, lanes), load(b, b0 + k * b_row, lanes), total)
    store(c, c0, total)
