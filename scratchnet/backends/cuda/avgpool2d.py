"""Average pooling: a thread owns one output; backward, a thread owns one pixel.

    y[n,i,j,c]  = sum_{u,v} x[n, i*stride + u - top, j*stride + v - left, c] / count[i,j]
    dx[n,r,s,c] = sum over the windows (i, j) that hold (r, s) of dy[n,i,j,c] / count[i,j]

count[i,j] is the number of the window's taps on the image, which both ways count anew.
"""

from functools import lru_cache
from typing import Any

from scratchnet.backends.cuda.arrays import Array, empty, on_device
from scratchnet.backends.cuda.device import at, cuda, launch_over, numba_type
from scratchnet.checks import check_image, check_pool2d, check_shape
from scratchnet.geometry import Geometry, Padding


def avgpool2d_forward(x: Array, size: int, stride: int, padding: Padding = "valid") -> Array:
    """x (N, H, W, C)  ->  (N, Ho, Wo, C)."""
    x = on_device(x)
    check_image("avgpool2d", "x", x)
    geometry = check_pool2d("avgpool2d", "x", x.shape, size, stride, padding)
    N, H, W, C = x.shape
    y = empty((N, geometry.Ho, geometry.Wo, C), x.dtype)
    kernel = _forward_kernel(numba_type(x.dtype), H, W, C, size, stride, geometry)
    launch_over(y.size, kernel, x, y)
    return y


def avgpool2d_backward(
    dy: Array,
    x_shape: tuple[int, int, int, int],
    size: int,
    stride: int,
    padding: Padding = "valid",
) -> Array:
    """dy (N, Ho, Wo, C)  ->  dx of shape x_shape."""
    dy = on_device(dy)
    geometry = check_pool2d("avgpool2d", "x_shape", x_shape, size, stride, padding)
    N, H, W, C = x_shape
    check_shape("avgpool2d", "dy", dy, (N, geometry.Ho, geometry.Wo, C))
    dx = empty(x_shape, dy.dtype)
    kernel = _backward_kernel(numba_type(dy.dtype), H, W, C, size, stride, geometry)
    launch_over(dx.size, kernel, dy, dx)
    return dx


@cuda.jit(device=True)
def taps_inside(first, size, extent):
    """How many of `size` neighbours from `first` on lie in 0 .. extent - 1."""
    low = first if first > 0 else 0
    high = first + size if first + size < extent else extent
    return high - low


@lru_cache
def _forward_kernel(
    dtype: Any, H: int, W: int, C: int, size: int, stride: int, where: Geometry
) -> Any:
    Ho, Wo, top, left = where.Ho, where.Wo, where.top, where.left
    zero = dtype(0)

    @cuda.jit
    def avgpool2d(x, y, count):
        for e in range(cuda.grid(1), count, cuda.gridsize(1)):
            c, pixel = at(e) % C, at(e) // C
            j, i, n = at(pixel) % Wo, at(pixel) // Wo % Ho, at(pixel) // (Wo * Ho)
            first_r, first_s = i * stride - top, j * stride - left
            total = zero
            for u in range(size):
                for v in range(size):
                    r, s = first_r + u, first_s + v
                    if r >= 0 and r < H and s >= 0 and s < W:
                        total += x[at(((n * H + r) * W + s) * C + c)]
            taps = taps_inside(first_r, size, H) * taps_inside(first_s, size, W)
            y[at(e)] = total / dtype(taps)

    return avgpool2d


@lru_cache
def _backward_kernel(
    dtype: Any, H: int, W: int, C: int, size: int, stride: int, where: Geometry
) -> Any:
    Ho, Wo, top, left = where.Ho, where.Wo, where.top, where.left
    zero = dtype(0)

    @cuda.jit
    def avgpool2d_gradient(dy, dx, count):
        for e in range(cuda.grid(1), count, cuda.gridsize(1)):
            c, pixel = at(e) % C, at(e) // C
            s, r, n = at(pixel) % W, at(pixel) // W % H, at(pixel) // (W * H)
            total = zero
            for u in range(size):
                i = r + top - u
                if i >= 0 and i % stride == 0 and i // stride < Ho:
                    for v in range(size):
                        j = s + left - v
                        if j >= 0 and j % stride == 0 and j // stride < Wo:
                            taps = taps_inside(i - top, size, H) * taps_inside(j - left, size, W)
                            value = dy[at(((n * Ho + i // stride) * Wo + j // stride) * C + c)]
                            total += value / dtype(taps)
            dx[at(e)] = total

    return avgpool2d_gradient
