"""What the windows of an image get, back to its pixels.

    dx[n, r(i,u), s(j,v), c] += dwindows[n,i,j,u,v,c]

    r(i,u) = i * stride + u * dilation - top        s(j,v) = j * stride + v * dilation - left

Each image belongs to one thread, so that windows may overlap without atomics.
"""

from numba import njit, prange


@njit(parallel=True, cache=True)
def add_windows(dwindows, stride, dilation, top, left, dx):
    """dwindows (N, Ho, Wo, K, K, C)  ->  dx (N, H, W, C), each pixel the sum of its taps."""
    N, H, W, C = dx.shape
    _, Ho, Wo, K, _, _ = dwindows.shape
    for n in prange(N):
        dx[n] = 0
        for i in range(Ho):
            for j in range(Wo):
                for u in range(K):
                    for v in range(K):
                        r = i * stride + u * dilation - top
                        s = j * stride + v * dilation - left
                        if 0 <= r < H and 0 <= s < W:
                            row, pixel = dwindows[n, i, j, u, v], dx[n, r, s]
                            for c in range(C):
                                pixel[c] += row[c]
