"""Addition, where a residual block joins its two paths: y = a + b.

Source: He et al. 2016, "Deep residual learning", equation 1.
"""

import numpy as np

from scratchnet.checks import check_float_array, check_like


def add_forward(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a, b of one shape and dtype  ->  y alike. Raises ValueError, TypeError where they differ."""
    check_float_array("add", "a", a)
    check_like("add", "b", b, a.shape, a.dtype)
    return a + b


def add_backward(dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dy  ->  da = dy, db = dy: the sum hands its gradient to both."""
    check_float_array("add", "dy", dy)
    return dy, dy
