"""Global average pooling: y[n,c] = mean_{i,j} x[n,i,j,c]. Source: Lin et al. 2014, section 3.2."""

import numpy as np

from scratchnet.checks import check_image, check_image_shape, check_shape


def globalavgpool2d_forward(x: np.ndarray) -> np.ndarray:
    """x (N, H, W, C) float32 or float64  ->  (N, C). Raises ValueError, TypeError otherwise."""
    check_image("globalavgpool2d", "x", x)
    return x.mean(axis=(1, 2))


def globalavgpool2d_backward(dy: np.ndarray, x_shape: tuple[int, int, int, int]) -> np.ndarray:
    """dy (N, C)  ->  dx of shape x_shape: dx[n,i,j,c] = dy[n,c] / (H * W)."""
    check_image_shape("globalavgpool2d", "x_shape", x_shape)
    N, H, W, C = x_shape
    check_shape("globalavgpool2d", "dy", dy, (N, C))
    return np.ascontiguousarray(np.broadcast_to(dy[:, None, None, :] / (H * W), x_shape))
