"""The windows of an image as the rows of a matrix, and back.

    columns[n,i,j,g,u,v,c] = x[n, r(i,u), s(j,v), g * C/G + c]

    r(i,u) = i * stride + u * dilation - top        s(j,v) = j * stride + v * dilation - left

Zero outside the image. Each image belongs to one thread, so that `add_windows`, where windows
overlap, needs no atomics.
"""

from numba import njit, prange


@njit(parallel=True, cache=True)
def copy_windows(x, stride, dilation, top, left, columns):
    """x (N, H, W, C)  ->  columns (N, Ho, Wo, G, K, K, C / G), written."""
    N, H, W, _ = x.shape
    _, Ho, Wo, G, K, _, per_group = columns.shape
    for n in prange(N):
        for i in range(Ho):
            for j in range(Wo):
                for g in range(G):
                    for u in range(K):
                        for v in range(K):
                            r = i * stride + u * dilation - top
                            s = j * stride + v * dilation - left
                            row = columns[n, i, j, g, u, v]
                            if 0 <= r < H and 0 <= s < W:
                                pixel = x[n, r, s, g * per_group : (g + 1) * per_group]
                                for c in range(per_group):
                                    row[c] = pixel[c]
                            else:
                                row[:] = 0


@njit(parallel=True, cache=True)
def add_windows(dcolumns, stride, dilation, top, left, dx):
    """dcolumns (N, Ho, Wo, G, K, K, C / G)  ->  dx (N, H, W, C), each pixel the sum of its taps."""
    N, H, W, _ = dx.shape
    _, Ho, Wo, G, K, _, per_group = dcolumns.shape
    for n in prange(N):
        dx[n] = 0
        for i in range(Ho):
            for j in range(Wo):
                for g in range(G):
                    for u in range(K):
                        for v in range(K):
                            r = i * stride + u * dilation - top
                            s = j * stride + v * dilation - left
                            if 0 <= r < H and 0 <= s < W:
                                row = dcolumns[n, i, j, g, u, v]
                                pixel = dx[n, r, s, g * per_group : (g + 1) * per_group]
                                for c in range(per_group):
                                    pixel[c] += row[c]
