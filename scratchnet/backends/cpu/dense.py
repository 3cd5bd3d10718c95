"""Dense layer: y = x @ weight + bias, over the last axis.

Three matrix products, with results in recycled memory.
"""

import numpy as np

from scratchnet.backends.cpu.matmul import matmul
from scratchnet.backends.cpu.thin import ROWS, thin_backward, thin_forward
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
    product = thin_forward if _is_thin(x) else matmul
    return product(_rows(x), weight, bias).reshape(*x.shape[:-1], weight.shape[1])


def dense_backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, need_dx: bool = True
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """The gradients of y = x @ weight + bias.

        dx = dy @ weight.T        dweight = x.T @ dy        dbias = sum(dy)

    dy (..., out)  ->  dx like x (None where need_dx is False), dweight (in, out), dbias (out,)
    """
    check_dense("dense", x, weight, None)
    check_like("dense", "dy", dy, (*x.shape[:-1], weight.shape[1]), x.dtype)
    if _is_thin(x):
        dx, dweight = thin_backward(_rows(dy), _rows(x), weight, need_dx)
        return None if dx is None else dx.reshape(x.shape), dweight, _rows(dy).sum(axis=0)
    dx = matmul(_rows(dy), weight.T).reshape(x.shape) if need_dx else None
    return dx, matmul(_rows(x).T, _rows(dy)), _rows(dy).sum(axis=0)


def _is_thin(x: np.ndarray) -> bool:
    return 0 < x.size <= ROWS * x.shape[-1]


def _rows(array: np.ndarray) -> np.ndarray:
    """All axes but the last as one."""
    return array.reshape(-1, array.shape[-1])
