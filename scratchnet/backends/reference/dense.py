"""Dense layer: y = x @ weight + bias, over the last axis.

Source: Goodfellow et al. 2016, "Deep learning", section 6.5.
"""

import numpy as np

from scratchnet.checks import check_dense, check_like


def dense_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Mix the features of each row.

    x         (..., in)       float32 or float64
    weight    (in, out)       same dtype
    bias      (out,) or None  same dtype
    returns   (..., out)
    raises    ValueError, TypeError where shapes or dtypes do not fit
    """
    check_dense("dense", x, weight, bias)
    y = x @ weight
    return y if bias is None else y + bias


def dense_backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, need_dx: bool = True
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """The gradients of y = x @ weight + bias.

        dx = dy @ weight.T        dweight = x.T @ dy        dbias = sum(dy)

    dy (..., out)  ->  dx like x (None where need_dx is False), dweight (in, out), dbias (out,)
    """
    check_dense("dense", x, weight, None)
    check_like("dense", "dy", dy, (*x.shape[:-1], weight.shape[1]), x.dtype)
    rows = x.reshape(-1, x.shape[-1])  # (rows, in)
    drows = dy.reshape(-1, dy.shape[-1])  # (rows, out)
    return (dy @ weight.T if need_dx else None), rows.T @ drows, drows.sum(axis=0)
