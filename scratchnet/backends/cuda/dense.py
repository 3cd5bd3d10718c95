"""Dense layer: y = x @ weight + bias, three tiled products.

    y       = x @ weight + bias        the sums of a block's rows and columns, bias added at the end
    dx      = dy @ weight.T
    dweight = x.T @ dy                 k runs over the rows of the batch, in chunks where that is
    dbias   = ones @ dy                long; dbias is one more row of the same product

See `matrix_product.py` for who owns what.
"""

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.matrix_product import (
    Matrix,
    multiply,
    multiply_long,
    store_rows,
    stored,
    vector_of,
    with_ones_below,
)
from scratchnet.checks import check_dense, check_like


def dense_forward(x: Array, weight: Array, bias: Array | None) -> Array:
    """x (..., in), weight (in, out), bias (out,) or None  ->  (..., out)."""
    x, weight, bias = on_device(x, weight, bias)
    check_dense("dense", x, weight, bias)
    features, O = weight.shape
    y = empty((*x.shape[:-1], O), x.dtype)
    store = store_rows(O, vector_of(O), x.dtype, has_bias=bias is not None)
    out = (y,) if bias is None else (y, bias)
    multiply(rows_of(features), columns_of(O), store, x.dtype, (x,), (weight,), out,
             x.size // features, O, features)  # fmt: skip
    return y


def dense_backward(
    dy: Array, x: Array, weight: Array, need_dx: bool = True
) -> tuple[Array | None, Array, Array]:
    """dy (..., out)  ->  dx like x (None where need_dx is False), dweight (in, out), dbias."""
    dy, x, weight = on_device(dy, x, weight)
    check_dense("dense", x, weight, None)
    check_like("dense", "dy", dy, (*x.shape[:-1], weight.shape[1]), x.dtype)
    features, O = weight.shape
    rows = x.size // features
    dx = None
    if need_dx:
        dx = empty(x.shape, x.dtype)
        store = store_rows(features, vector_of(features), x.dtype)
        multiply(rows_of(O), rows_of(O), store, x.dtype, (dy,), (weight,), (dx,),
                 rows, features, O)  # fmt: skip
    dweight, dbias = multiply_long(
        with_ones_below(columns_of(features), features, x.dtype), columns_of(O), x.dtype,
        (x,), (dy,), (features, 1), O, rows,
    )  # fmt: skip
    return dx, dweight.reshape(features, O), dbias


def rows_of(width: int) -> Matrix:
    """A[m,k] of an array of rows, or B[k,n] = array[n,k]."""
    return stored(width, 1, 0, vector_of(width))


def columns_of(width: int) -> Matrix:
    """B[k,n] of an array of rows."""
    return stored(1, width, 0, vector_of(width))
