"""An involution whose kernels are generated from many hidden channels, as in RedNet.

With h = p @ reduce_weight + reduce_bias and t = relu(gamma * (h - mean) * inv_std + beta), pixel by
pixel and hidden channel by hidden channel, the kernels of group g are the product

    kernel[k, p] = sum_o span_weight[o, g*K*K + k] * t[o, p] + span_bias[g*K*K + k]

which is made for one image and a few groups at a time, and used while it is in the second cache:
the kernels of a batch, K * K / 16 times as large as the image, are never in memory, and backward
makes them again. Everything lies channel by channel (o, p), so that products and window sums alike
run over pixels as vectors, with rows of `pitch` numbers, 0 beyond the last pixel. The threads share
the images; statistics are kept for each image, and gradients of the parameters for each of CHUNKS
chunks of images, and added in order.
"""

import numpy as np
from numba import get_num_threads, get_thread_id, njit, prange

from scratchnet.backends.cpu.loops import CHUNKS, piece
from scratchnet.backends.cpu.memory import empty, zeros
from scratchnet.backends.cpu.products import multiply
from scratchnet.backends.cpu.vectors import (
    first_lanes,
    fma,
    lane_sum,
    load,
    splat,
    store,
    where_positive,
)
from scratchnet.backends.cpu.window_sums import (
    LANES,
    TILE,
    Planes,
    join_phases,
    kernel_gradients,
    mask_kernels,
    put_group,
    split_phases,
    take_group,
    tap_tables,
    whole,
    window_sums,
)

KERNELS = 1 << 16  # numbers of kernels at a time; they and their gradients fit the second cache


def wide_hidden(p: np.ndarray, reduce_weight: np.ndarray, reduce_bias: np.ndarray) -> np.ndarray:
    """h = p @ reduce_weight + reduce_bias, channel by channel.

    p (N, Ho, Wo, C), reduce_weight (C, O), reduce_bias (O,)  ->  h (N, O, pitch)
    """
    N, Ho, Wo, C = p.shape
    O = reduce_weight.shape[1]
    # A whole page from row to row would put all of them in one set of the cache.
    h = empty((N, O, whole(Ho * Wo) + LANES), p.dtype)
    work = empty((get_num_threads(), Ho * Wo * whole(O)), p.dtype)
    _reduce(p.reshape(N, -1), _whole_columns(reduce_weight), reduce_bias, Ho * Wo, work, h)
    return h


@njit(parallel=True, cache=True)
def _reduce(p, weight, bias, pixels, work, h):
    N, O, _ = h.shape
    C, columns = weight.shape
    for n in prange(N):
        own = work[get_thread_id()]
        multiply(
            p[n], 0, C, 1, weight.reshape(-1), 0, columns,
            own, 0, columns, pixels, C, columns, False,
        )  # fmt: skip
        _transpose(own, pixels, columns, h[n])
        for o in range(O):
            h[n, o, :pixels] += bias[o]


def wide_statistics(h: np.ndarray, pixels: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """mean and 1 / sqrt(variance + eps) of each hidden channel: (O,), (O,).

    One pass: as in `narrow_statistics` the deviations are those from the first image's mean.
    """
    N, O, _ = h.shape
    centre = h[0, :, :pixels].mean(axis=1)
    partial = empty((2, N, O), h.dtype)
    _deviations(h, pixels, centre, partial)
    first, second = partial.sum(axis=1) / h.dtype.type(N * pixels)
    variance = np.maximum(second - np.square(first), 0)
    return centre + first, (1 / np.sqrt(variance + eps)).astype(h.dtype)


@njit(parallel=True, cache=True)
def _deviations(h, pixels, centre, partial):
    """Per image and channel the sums of h - centre and of its square."""
    N, O, _ = h.shape
    for n in prange(N):
        one, minus = splat(h.dtype.type(1), LANES), splat(h.dtype.type(-1), LANES)
        for o in range(O):
            row, shift = h[n, o], splat(centre[o], LANES)
            first = second = splat(h.dtype.type(0), LANES)
            for p in range(0, pixels, LANES):
                deviation = fma(shift, minus, load(row, p, LANES))
                deviation = first_lanes(deviation, pixels - p)
                first = fma(deviation, one, first)
                second = fma(deviation, deviation, second)
            partial[0, n, o], partial[1, n, o] = lane_sum(first), lane_sum(second)


def wide_involution_forward(
    x: np.ndarray,
    p: np.ndarray,
    h: np.ndarray,
    norm: np.ndarray,
    span_weight: np.ndarray,
    span_bias: np.ndarray,
    K: int,
    stride: int,
    dilation: int,
) -> np.ndarray:
    """The window sums of x (N, H, W, C).

    p             (N, Ho, Wo, C)  x, or its means over cells
    h             (N, O, pitch)   of `wide_hidden`
    norm          (4, O)          mean, inv_std, gamma, beta
    span_weight   (O, G * K * K)
    span_bias     (G * K * K,)
    returns       (N, Ho, Wo, C)
    """
    N, H, W, C = x.shape
    Ho, Wo = p.shape[1:3]
    O, pitch = h.shape[1:]
    planes, taps, _, _, mask = tap_tables(H, W, K, stride, dilation, x.dtype)
    threads, channels = get_num_threads(), C * K * K // span_bias.size
    groups, together = _groups_at_a_time(planes, K, C // channels), _channels_at_a_time(channels)
    y = empty((N, Ho, Wo, C), x.dtype)
    _forward(
        split_phases(x, stride), h, norm, span_weight.reshape(-1), span_bias,
        planes, planes.pitch, taps, mask, groups, empty((threads, O * pitch), x.dtype),
        zeros((threads, planes.numbers(groups * K * K)), x.dtype),
        zeros((threads, planes.numbers(together * stride**2)), x.dtype),
        empty((threads, planes.numbers(together)), x.dtype), y.reshape(N, Ho * Wo, C),
    )  # fmt: skip
    return y


@njit(parallel=True, cache=True)
def _forward(
    x, h, norm, span_weight, span_bias, planes, pitch, taps, mask, groups, hidden_work,
    kernel_work, x_work, y_work, y,
):  # fmt: skip
    N, phases, _, C = x.shape
    size, margin = planes
    K2 = taps.shape[0]
    G = span_bias.size // K2
    channels, step = C // G, phases * pitch
    for n in prange(N):
        thread = get_thread_id()
        t, kernel = hidden_work[thread], kernel_work[thread]
        xs, ys = x_work[thread], y_work[thread]
        _hidden(h[n], norm, y.shape[1], t)
        for g in range(G):
            if g % groups == 0:
                some = slice(g * K2, min(g + groups, G) * K2)
                _generate(span_weight, span_bias, some, t, h.shape[1:], planes, pitch, mask, kernel)
            first, count = _channels_with(g, channels, C)
            own = g * channels - first
            if own == 0:
                for phase in range(phases):
                    start = margin + phase * pitch
                    take_group(x[n, phase], first, count, xs, start, step)
            window_sums(
                kernel[g % groups * K2 * pitch :], xs[own * step :], taps, step, size, channels,
                ys, margin + own * pitch, pitch,
            )  # fmt: skip
            if own + channels == count:
                put_group(ys, margin, pitch, y[n], first, count)


@njit(cache=True)
def _hidden(h, norm, pixels, t):
    """t = relu(gamma * (h - mean) * inv_std + beta), and 0 beyond the last pixel."""
    O, pitch = h.shape
    zero = h.dtype.type(0)
    for o in range(O):
        mean, scale, beta = norm[0, o], norm[2, o] * norm[1, o], norm[3, o]
        source, target = h[o], t[o * pitch : (o + 1) * pitch]
        for p in range(pixels):
            z = (source[p] - mean) * scale + beta
            target[p] = zero if z <= zero else z
        target[pixels:] = 0


def _groups_at_a_time(planes: Planes, K: int, G: int) -> int:
    return min(G, max(1, KERNELS // planes.numbers(K * K)))


@njit(cache=True)
def _channels_at_a_time(channels):
    """Those that are laid out together: of several groups where one has fewer than a tile."""
    return channels * max(1, TILE // channels)


@njit(cache=True)
def _channels_with(g, channels, C):
    """The first of the channels that are laid out together with those of group g, and how many."""
    together = _channels_at_a_time(channels)
    first = g * channels // together * together
    return first, min(together, C - first)


@njit(cache=True)
def _generate(span_weight, span_bias, some, t, t_shape, planes, pitch, mask, kernel):
    """The kernels of some groups, tap by tap: their columns of span_weight, transposed, times t."""
    (O, t_pitch), (size, margin) = t_shape, planes
    rows = some.stop - some.start
    for k in range(rows):
        kernel[margin + k * pitch : margin + k * pitch + size] = span_bias[some.start + k]
    multiply(
        span_weight, some.start, 1, span_bias.size, t, 0, t_pitch,
        kernel, margin, pitch, rows, O, size, True,
    )  # fmt: skip
    for first in range(0, rows, mask.size // size):
        mask_kernels(kernel, margin + first * pitch, pitch, mask, size)


def wide_involution_backward(
    dy: np.ndarray,
    x: np.ndarray,
    p: np.ndarray,
    h: np.ndarray,
    norm: np.ndarray,
    reduce_weight: np.ndarray,
    span_weight: np.ndarray,
    span_bias: np.ndarray,
    K: int,
    stride: int,
    dilation: int,
    need_dx: bool,
) -> tuple[np.ndarray | None, ...]:
    """dy (N, Ho, Wo, C)  ->  dx along the windows like x, dp like p (for stride 1 both in dx), or
    None and None, dreduce_weight (C, O), dreduce_bias, dgamma, dbeta (O,), dspan_weight,
    dspan_bias.
    """
    N, H, W, C = x.shape
    Ho, Wo = dy.shape[1:3]
    O, pitch = h.shape[1:]
    planes, taps, back_taps, starts, mask = tap_tables(H, W, K, stride, dilation, x.dtype)
    hidden, channels, threads = whole(O), C * K * K // span_bias.size, get_num_threads()
    together = _channels_at_a_time(channels)
    row_work = empty((threads, Ho * Wo * max(hidden, whole(C))), x.dtype)
    groups = _groups_at_a_time(planes, K, C // channels)
    phases = split_phases(x, stride)
    dphases = empty(phases.shape if need_dx else (N, phases.shape[1], 0, C), x.dtype)
    dz = empty(h.shape, x.dtype)
    dspan_weight = empty((CHUNKS, span_bias.size, hidden), x.dtype)
    dspan_bias = empty((N, span_bias.size), x.dtype)
    dnorm = empty((N, 2, O), x.dtype)
    _to_hidden(
        dy.reshape(N, Ho * Wo, C), phases, h, norm, span_weight.reshape(-1), span_bias,
        planes, planes.pitch, taps, back_taps, starts, mask, groups,
        zeros((threads, 2, planes.numbers(together * stride**2)), x.dtype),
        zeros((threads, planes.numbers(together)), x.dtype),
        zeros((threads, 2, planes.numbers(groups * K * K)), x.dtype),
        empty((threads, 2, O * pitch), x.dtype), row_work,
        dphases, dz, dspan_weight, dspan_bias, dnorm,
    )  # fmt: skip
    dx = join_phases(dphases, stride, x.shape) if need_dx else dphases
    dgamma, dbeta = dnorm.sum(axis=0)
    # Without a stride both paths lead to the same pixels, and add up at once.
    dp = dx if stride == 1 or not need_dx else empty(p.shape, x.dtype)
    dreduce_weight = empty((CHUNKS, C, hidden), x.dtype)
    dreduce_bias = empty((N, O), x.dtype)
    _to_input(
        dz, h, p.reshape(N, Ho * Wo, C), norm, np.stack([dgamma, dbeta]) / (N * Ho * Wo),
        _whole_columns(reduce_weight.T), stride == 1, row_work, dp.reshape(N, -1, C),
        dreduce_weight, dreduce_bias,
    )  # fmt: skip
    return (
        dx if need_dx else None,
        dp if need_dx else None,
        dreduce_weight[:, :, :O].sum(axis=0),
        dreduce_bias.sum(axis=0),
        dgamma,
        dbeta,
        dspan_weight[:, :, :O].sum(axis=0).T,
        dspan_bias.sum(axis=0),
    )


@njit(parallel=True, cache=True)
def _to_hidden(
    dy, x, h, norm, span_weight, span_bias, planes, pitch, taps, back_taps, starts, mask,
    groups, x_work, y_work, kernel_work, hidden_work, row_work,
    dx, dz, dspan_weight, dspan_bias, dnorm,
):  # fmt: skip
    """From dy along the kernels to dz, the gradient before the ReLU, along the windows to dx."""
    N, phases, _, C = x.shape
    _, O, t_pitch = h.shape
    size, margin = planes
    K2, columns, pixels = taps.shape[0], dspan_weight.shape[2], dy.shape[1]
    G = span_bias.size // K2
    channels, step = C // G, phases * pitch
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        thread = get_thread_id()
        t, dt = hidden_work[thread, 0], hidden_work[thread, 1]
        kernel, dkernel = kernel_work[thread, 0], kernel_work[thread, 1]
        xs, dxs, dys = x_work[thread, 0], x_work[thread, 1], y_work[thread]
        t_rows, dweight = row_work[thread], dspan_weight[chunk].reshape(-1)
        dweight[:] = 0
        for n in range(lo, hi):
            _hidden(h[n], norm, pixels, t)
            _transpose_back(t, t_pitch, O, pixels, columns, t_rows)
            dt[:] = 0
            for g in range(G):
                some = slice(g // groups * groups * K2, min(g // groups * groups + groups, G) * K2)
                if g % groups == 0 and dx.size:
                    _generate(
                        span_weight, span_bias, some, t, h.shape[1:], planes, pitch, mask, kernel
                    )
                first, count = _channels_with(g, channels, C)
                own = g * channels - first
                if own == 0:
                    for phase in range(phases):
                        start = margin + phase * pitch
                        take_group(x[n, phase], first, count, xs, start, step)
                    take_group(dy[n], first, count, dys, margin, pitch)
                made = g % groups * K2 * pitch
                if dx.size:
                    for phase in range(phases):
                        few, start = slice(starts[phase], starts[phase + 1]), margin + phase * pitch
                        window_sums(
                            kernel[made:], dys[own * pitch :], back_taps[few], pitch, size,
                            channels, dxs, start + own * step, step,
                        )  # fmt: skip
                        if own + channels == count:
                            put_group(dxs, start, step, dx[n, phase], first, count)
                kernel_gradients(
                    dys[own * pitch :], margin, pitch, xs[own * step :], taps, step, mask, size,
                    channels, dkernel[made:],
                )  # fmt: skip
                if (g + 1) * K2 == some.stop:
                    _span_gradients(
                        dkernel, planes, pitch, some, span_weight, t_rows, pixels, columns, t_pitch,
                        dt, dweight, dspan_bias[n],
                    )  # fmt: skip
            _norm_gradients(dt, t, h[n], norm, pixels, dz[n], dnorm[n])


@njit(cache=True)
def _span_gradients(
    dkernel, planes, pitch, some, span_weight, t_rows, pixels, columns, t_pitch, dt, dweight, dbias
):  # fmt: skip
    """From the kernels of some groups to t, and to the columns of span that made them."""
    size, margin = planes
    rows = some.stop - some.start
    multiply(
        span_weight, some.start, dbias.size, 1, dkernel, margin, pitch,
        dt, 0, t_pitch, dt.size // t_pitch, rows, size, True,
    )  # fmt: skip
    multiply(
        dkernel, margin, pitch, 1, t_rows, 0, columns,
        dweight, some.start * columns, columns, rows, pixels, columns, True,
    )  # fmt: skip
    _row_sums(dkernel, margin, pitch, size, dbias[some])


@njit(cache=True)
def _row_sums(rows, first, pitch, size, sums):
    one = splat(rows.dtype.type(1), LANES)
    for k in range(sums.size):
        total = splat(rows.dtype.type(0), LANES)
        for p in range(first + k * pitch, first + k * pitch + size, LANES):
            total = fma(load(rows, p, LANES), one, total)
        sums[k] = lane_sum(total)


@njit(cache=True)
def _norm_gradients(dt, t, h, norm, pixels, dz, dnorm):
    """dz where the ReLU was open, and this image's part of dgamma and dbeta.

    Beyond the last pixel dt is 0, and so are dz and its part of the sums.
    """
    O, pitch = h.shape
    zero, one = splat(h.dtype.type(0), LANES), splat(h.dtype.type(1), LANES)
    minus = splat(h.dtype.type(-1), LANES)
    for o in range(O):
        mean, inv_std = splat(norm[0, o], LANES), splat(norm[1, o], LANES)
        h_o, dz_o = h[o], dz[o]
        dgamma = dbeta = zero
        for p in range(0, pixels, LANES):
            e = o * pitch + p
            dz_p = where_positive(load(t, e, LANES), load(dt, e, LANES), zero)
            xhat = fma(fma(mean, minus, load(h_o, p, LANES)), inv_std, zero)
            dgamma = fma(dz_p, xhat, dgamma)
            dbeta = fma(dz_p, one, dbeta)
            store(dz_o, p, dz_p)
        dnorm[0, o], dnorm[1, o] = lane_sum(dgamma), lane_sum(dbeta)


@njit(parallel=True, cache=True)
def _to_input(
    dz, h, p, norm, dnorm, weight, onto_windows, row_work, dp, dreduce_weight, dreduce_bias
):
    """From dz through the norm to dh, and from there to dp and the gradients of `reduce`."""
    N, O, pitch = h.shape
    _, pixels, C = p.shape
    columns, hidden = weight.shape[1], dreduce_weight.shape[2]
    for chunk in prange(CHUNKS):
        lo, hi = piece(N, chunk)
        rows = row_work[get_thread_id()]
        dweight = dreduce_weight[chunk].reshape(-1)
        dweight[:] = 0
        for n in range(lo, hi):
            dh = dz[n].reshape(-1)
            _norm_input_gradient(dz[n], h[n], norm, dnorm, pixels)
            for o in range(O):
                dreduce_bias[n, o] = dz[n, o, :pixels].sum()
            _transpose_back(dh, pitch, O, pixels, hidden, rows)
            multiply(
                p[n].reshape(-1), 0, 1, C, rows, 0, hidden,
                dweight, 0, hidden, C, pixels, hidden, True,
            )  # fmt: skip
            if dp.size:
                multiply(
                    dh, 0, 1, pitch, weight.reshape(-1), 0, columns,
                    rows, 0, columns, pixels, O, columns, False,
                )  # fmt: skip
                _put_rows(rows, columns, dp[n], onto_windows)


@njit(cache=True)
def _norm_input_gradient(dz, h, norm, dnorm, pixels):
    """dz becomes dh = gamma * inv_std * (dz - dbeta / M - xhat * dgamma / M)."""
    zero, minus = splat(h.dtype.type(0), LANES), splat(h.dtype.type(-1), LANES)
    for o in range(dz.shape[0]):
        mean, inv_std = splat(norm[0, o], LANES), splat(norm[1, o], LANES)
        scale = splat(norm[2, o] * norm[1, o], LANES)
        dgamma, dbeta = splat(dnorm[0, o], LANES), splat(dnorm[1, o], LANES)
        dz_o, h_o = dz[o], h[o]
        for p in range(0, pixels, LANES):
            xhat = fma(fma(mean, minus, load(h_o, p, LANES)), inv_std, zero)
            means = fma(xhat, dgamma, dbeta)
            store(dz_o, p, fma(fma(means, minus, load(dz_o, p, LANES)), scale, zero))


@njit(cache=True)
def _put_rows(rows, columns, image, add):
    """The first of the columns (pixels, columns) to image (pixels, C), or added to it."""
    pixels, C = image.shape
    for p in range(pixels):
        source, target = rows[p * columns :], image[p]
        if add:
            for c in range(C):
                target[c] += source[c]
        else:
            for c in range(C):
                target[c] = source[c]


@njit(cache=True)
def _transpose(rows, pixels, columns, h):
    """Pixel by pixel (pixels, columns) to channel by channel (O, pitch), 0 beyond the pixels."""
    O, pitch = h.shape
    image = rows[: pixels * columns].reshape(pixels, columns)
    take_group(image, 0, O, h.reshape(-1), 0, pitch)
    h[:, pixels:] = 0


@njit(cache=True)
def _transpose_back(t, pitch, O, pixels, columns, rows):
    """Channel by channel to pixel by pixel; what stands beyond the channels nobody asks for."""
    image = rows[: pixels * columns].reshape(pixels, columns)
    put_group(t, 0, pitch, image, 0, O)


def _whole_columns(matrix: np.ndarray) -> np.ndarray:
    """The matrix with columns of zeros appended, to whole vectors."""
    rows, columns = matrix.shape
    padded = np.zeros((rows, whole(columns)), matrix.dtype)
    padded[:, :columns] = matrix
    return padded
