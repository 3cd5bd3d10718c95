"""Global average pooling, y[n,c] = mean_{i,j} x[n,i,j,c]: a thread owns one image's channel.

Neighbouring threads walk down neighbouring channels. Backward, a thread owns one pixel's channel.
"""

from functools import lru_cache
from typing import Any

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.device import at, cuda, launch_over, numba_type
from scratchnet.checks import check_image, check_image_shape, check_shape


def globalavgpool2d_forward(x: Array) -> Array:
    """x (N, H, W, C)  ->  (N, C)."""
    x = on_device(x)
    check_image("globalavgpool2d", "x", x)
    N, H, W, C = x.shape
    y = empty((N, C), x.dtype)
    launch_over(y.size, _forward_kernel(numba_type(x.dtype)), x, y, H * W, C)
    return y


def globalavgpool2d_backward(dy: Array, x_shape: tuple[int, int, int, int]) -> Array:
    """dy (N, C)  ->  dx of shape x_shape: dx[n,i,j,c] = dy[n,c] / (H * W)."""
    dy = on_device(dy)
    check_image_shape("globalavgpool2d", "x_shape", x_shape)
    N, H, W, C = x_shape
    check_shape("globalavgpool2d", "dy", dy, (N, C))
    dx = empty(x_shape, dy.dtype)
    launch_over(dx.size, _share, dy, dx, dy.dtype.type(H * W), H * W * C, C)
    return dx


@lru_cache
def _forward_kernel(dtype: Any) -> Any:
    zero = dtype(0)

    @cuda.jit
    def globalavgpool2d(x, y, pixels, C, count):
        for e in range(cuda.grid(1), count, cuda.gridsize(1)):
            n, c = at(e) // at(C), at(e) % at(C)
            total = zero
            for pixel in range(pixels):
                total += x[at((n * pixels + pixel) * C + c)]
            y[at(e)] = total / dtype(pixels)

    return globalavgpool2d


@cuda.jit
def _share(dy, dx, pixels, image_size, C, count):
    for e in range(cuda.grid(1), count, cuda.gridsize(1)):
        dx[at(e)] = dy[at(at(e) // at(image_size) * at(C) + at(e) % at(C))] / pixels
