"""`benchmark.py --device cuda`: training steps beside PyTorch's, and kernels beside others.

First a training step (forward, backward, Adam) of each of the report's networks, at its batch size:
ours, PyTorch's (eager, channels last, no TF32), and the same recorded as a CUDA graph; ours in one
too, for its time alone: Adam's corrections and the dropout seeds, which change with every step, are
arguments of our kernels and stay those of the recording.

Then the involution kernels beside the official algorithm and PyTorch's unfold. Each row is a shape:
microseconds by CUDA events, medians of 20 runs, forward and backward (both gradients); the share of
the bandwidth floor, which reads and writes every array once, as fast as a sum of two large arrays
does in the same run; and how many times as long the others take. The official algorithm is that of
Li et al.'s CuPy code, written anew: NCHW, one thread for every output element, K * K times two
loads and a multiply-add, indices in 32 bits.

Then the whole involution layer in training, as Li et al. have it (reduction 4), its kernels made
where they are used, or stored in memory, and PyTorch's by unfold.

Products and convolutions follow, in TFLOP/s beside PyTorch's without TF32. PyTorch's columns need
torch with CUDA. What is printed are tables in Markdown, as README has them.
"""

import argparse
import importlib
import statistics
from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np
from benchmark_tools import OURS, network_and_batch, training_step

from scratchnet import Involution2D
from scratchnet.backends import get_backend

RUNS = 20
STEPS = 10  # in a run of training steps
SHAPES = (  # batch, channels, height, stride, K; groups of 16 channels
    (64, 64, 56, 1, 7), (64, 128, 56, 2, 7), (64, 128, 28, 1, 7), (64, 256, 14, 1, 7),
    (64, 512, 7, 1, 7), (128, 64, 32, 1, 7), (128, 128, 16, 1, 7), (128, 256, 8, 1, 7),
    (128, 64, 32, 1, 3), (128, 16, 32, 1, 3),
)  # fmt: skip


def on_gpu(options: argparse.Namespace) -> list[dict]:
    """Every row. raises BackendError where there is no GPU"""
    gpu = get_backend("cuda")
    copy_bandwidth = bandwidth(gpu)
    print(f"{gpu.device.describe()}; copy: {copy_bandwidth / 1e9:.0f} GB/s")
    rows = [{"gpu": gpu.device.describe(), "copy_bandwidth": copy_bandwidth}]
    torch = torch_with_cuda() if options.peers else None
    for header, line, make, cases in (
        (STEP_HEADER, step_line, step_row, [(network,) for network in options.networks]),
        (INVOLUTION_HEADER, involution_line, partial(involution_row, copy_bandwidth), SHAPES),
        (LAYER_HEADER, layer_line, layer_row, SHAPES),
        (RATE_HEADER, rate_line, product_row, [(size,) for size in (1024, 4096)]),
        ((), rate_line, convolution_row, [(C,) for C in (64, 128, 256)]),
    ):
        if header:
            print("", *table_head(header), sep="\n")
        for case in cases:
            rows.append(make(gpu, torch, *case))
            print(line(rows[-1]), flush=True)
    return rows


STEP_HEADER = (
    "a step, ms", "batch", OURS, "in a CUDA graph", "PyTorch", "in a CUDA graph", "PyTorch / ours"
)  # fmt: skip
INVOLUTION_HEADER = (
    "N, C, H = W, stride, K", "forward, μs", "of floor", "official", "unfold",
    "backward, μs", "of floor", "official", "unfold",
)  # fmt: skip
LAYER_HEADER = (
    "layer: N, C, H = W, stride, K", "forward, μs", "kernels stored", "PyTorch",
    "backward, μs", "kernels stored", "PyTorch",
)  # fmt: skip
RATE_HEADER = ("TFLOP/s", OURS, "PyTorch")


def table_head(header: Sequence[str]) -> tuple[str, str]:
    return table_line(header), table_line(["---", *["---:"] * (len(header) - 1)])


def table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def step_line(row: dict) -> str:
    names = ("ours", "ours in a CUDA graph", "PyTorch", "PyTorch in a CUDA graph")
    cells = [f"{row[name]:.3f}" if name in row else "–" for name in names]
    ratio = f"{row['PyTorch'] / row['ours']:.1f}x" if "PyTorch" in row else "–"
    return table_line([row["network"], str(row["batch"]), *cells, ratio])


def involution_line(row: dict) -> str:
    cells = [", ".join(map(str, row["shape"]))]
    for way in ("forward", "backward"):
        mine = row[f"ours_{way}"]
        cells += [f"{1e3 * mine:.0f}", f"{row[f'floor_{way}'] / mine:.0%}"]
        for name in ("official", "unfold"):
            other = row.get(f"{name}_{way}")
            cells.append(f"{other / mine:.1f}x" if other else "–")
    return table_line(cells)


def layer_line(row: dict) -> str:
    cells = [", ".join(map(str, row["layer"]))]
    for way in ("forward", "backward"):
        times = [row.get(f"{name}_{way}") for name in ("made", "stored", "pytorch")]
        cells += [f"{1e3 * time:.0f}" if time else "–" for time in times]
    return table_line(cells)


def rate_line(row: dict) -> str:
    peer = f"{row['pytorch']:.1f}" if "pytorch" in row else "–"
    return table_line([row["name"], f"{row['ours']:.1f}", peer])


def step_row(gpu, torch, network: str) -> dict:
    """Milliseconds of a training step, one contender after the other."""
    model, x, labels = network_and_batch(network)
    steps = {}
    if torch is not None:
        make = partial(
            importlib.import_module("peers_pytorch").training_step,
            model, x, labels, channels_last=True, device="cuda",
        )  # fmt: skip
        steps = {"PyTorch": make(), "PyTorch in a CUDA graph": make(graph=True)}
    ours = training_step(model.to("cuda"), gpu.to_device(x), gpu.to_device(labels))
    row = {"network": network, "batch": len(x)}
    if gpu.device.cuda.implementation == "NVIDIA" and not gpu.device.SIMULATED:
        steps["ours in a CUDA graph"] = gpu.recorded(lambda: (ours(),))
    for name, step in ({"ours": ours} | steps).items():
        run = lambda step=step: [step() for _ in range(STEPS)]  # noqa: E731
        row[name] = milliseconds(gpu, run) / STEPS
    return row


def kernel_milliseconds(gpu, function) -> float:
    """The same behind the sum of large arrays and the mean of one: when these end the kernels wait
    already, and no time of the host is counted. All start with a cache that holds something else,
    of which nothing is left to be written to memory at their expense."""
    add, average = large_sum(gpu), large_mean(gpu)
    return milliseconds(gpu, function, lambda: (add(), average()))


@lru_cache
def large_sum(gpu):
    """A call that reads and writes 1.6 GB."""
    a, b = (gpu.to_device(np.ones(2**27, np.float32)) for _ in range(2))
    return lambda: gpu.add_forward(a, b)


@lru_cache
def large_mean(gpu):
    """A call that reads 0.5 GB and writes next to nothing."""
    x = gpu.to_device(np.ones((64, 128, 128, 128), np.float32))
    return lambda: gpu.globalavgpool2d_forward(x)


def milliseconds(gpu, function, before=lambda: None) -> float:
    """The median of RUNS runs, after three to compile and warm up."""
    cuda = gpu.device.cuda
    for _ in range(3):
        function()
    times = []
    for _ in range(RUNS):
        start, end = cuda.event(timing=True), cuda.event(timing=True)
        before()
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(cuda.event_elapsed_time(start, end))
    return statistics.median(times)


def bandwidth(gpu) -> float:
    """Bytes a second that a sum of two large arrays reads and writes."""
    return 3 * 4 * 2**27 / (milliseconds(gpu, large_sum(gpu)) / 1e3)


def involution_row(copy_bandwidth: float, gpu, torch, N, C, H, stride, K) -> dict:
    G, Ho = C // 16, -(-H // stride)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, H, H, C), np.float32)
    kernel = rng.standard_normal((N, Ho, Ho, G, K, K), np.float32)
    dy = rng.standard_normal((N, Ho, Ho, C), np.float32)
    bytes_forward = x.nbytes + kernel.nbytes + dy.nbytes
    bytes_backward = bytes_forward + x.nbytes + kernel.nbytes
    ours = [gpu.to_device(a) for a in (x, kernel, dy)]
    theirs = [
        gpu.to_device(np.ascontiguousarray(a))
        for a in (x.transpose(0, 3, 1, 2), kernel.transpose(0, 3, 4, 5, 1, 2),
                  dy.transpose(0, 3, 1, 2))
    ]  # fmt: skip
    row = {"shape": [N, C, H, stride, K]}
    contenders = {
        "ours": (
            lambda: gpu.involution_forward(ours[0], ours[1], stride),
            lambda: gpu.involution_backward(ours[2], ours[0], ours[1], stride),
        ),
        "official": official(gpu, *theirs, stride),
    }
    if torch is not None:
        contenders["unfold"] = unfold(torch, x, kernel, dy, stride)
    for name, (forward, backward) in contenders.items():
        times = [kernel_milliseconds(gpu, run) for run in (forward, backward)]
        row |= {f"{name}_forward": times[0], f"{name}_backward": times[1]}
    row["floor_forward"] = bytes_forward / copy_bandwidth * 1e3
    row["floor_backward"] = bytes_backward / copy_bandwidth * 1e3
    return row


def official(gpu, x, kernel, dy, stride: int):
    """Forward and backward of the official algorithm, on NCHW arrays."""
    cuda, empty, launch = gpu.device.cuda, gpu.arrays.empty, gpu.device.launch
    N, C, H, W = x.shape
    G, K, Ho, Wo = kernel.shape[1], kernel.shape[2], kernel.shape[4], kernel.shape[5]
    kernels = official_kernels(gpu.device, C, H, W, G, K, Ho, Wo, stride)
    y, dx, dkernel = (empty(a.shape, np.float32) for a in (dy, x, kernel))
    threads = 1024 if cuda.is_available() and not gpu.device.SIMULATED else 16

    def start(which, out, *arrays):
        launch(kernels[which], -(-out.size // threads), threads, *arrays, out, out.size)
        return out

    def backward():
        return start(1, dx, dy, kernel), start(2, dkernel, dy, x)

    return (lambda: start(0, y, x, kernel)), backward


@lru_cache
def official_kernels(device, C, H, W, G, K, Ho, Wo, stride):
    cuda, at = device.cuda, device.at
    per_group, before = C // G, (K - 1) // 2
    zero = np.float32(0)

    @cuda.jit
    def forward(x, kernel, y, count):
        e = at(cuda.grid(1))
        if e >= count:
            return
        j, i, c, n = at(e % Wo), at(e // Wo % Ho), at(e // (Wo * Ho) % C), at(e // (Wo * Ho * C))
        g = at(n * G + c // per_group)
        total = zero
        for u in range(K):
            for v in range(K):
                r, s = at(i * stride + u - before), at(j * stride + v - before)
                if r < H and s < W:
                    weight = kernel[at((((g * K + u) * K + v) * Ho + i) * Wo + j)]
                    total += weight * x[at(((n * C + c) * H + r) * W + s)]
        y[e] = total

    @cuda.jit
    def image_gradient(dy, kernel, dx, count):
        e = at(cuda.grid(1))
        if e >= count:
            return
        s, r, c, n = at(e % W), at(e // W % H), at(e // (W * H) % C), at(e // (W * H * C))
        g = at(n * G + c // per_group)
        total = zero
        for u in range(K):
            for v in range(K):
                first_i, first_j = at(r + before - u), at(s + before - v)
                i, j = at(first_i // stride), at(first_j // stride)
                if first_i % stride == 0 and first_j % stride == 0 and i < Ho and j < Wo:
                    weight = kernel[at((((g * K + u) * K + v) * Ho + i) * Wo + j)]
                    total += weight * dy[at(((n * C + c) * Ho + i) * Wo + j)]
        dx[e] = total

    @cuda.jit
    def kernel_gradient(dy, x, dkernel, count):
        e = at(cuda.grid(1))
        if e >= count:
            return
        j, i, v = at(e % Wo), at(e // Wo % Ho), at(e // (Wo * Ho) % K)
        u, group = at(e // (Wo * Ho * K) % K), at(e // (Wo * Ho * K * K))  # of all images
        r, s = at(i * stride + u - before), at(j * stride + v - before)
        total = zero
        if r < H and s < W:
            for channel in range(per_group):
                c = at(group * per_group + channel)
                total += dy[at((c * Ho + i) * Wo + j)] * x[at((c * H + r) * W + s)]
        dkernel[e] = total

    return forward, image_gradient, kernel_gradient


def unfold(torch, x, kernel, dy, stride: int):
    """PyTorch's formulation by unfold, forward and backward."""
    N, Ho, Wo, G, K, _ = kernel.shape
    C = x.shape[3]
    x = torch.tensor(x.transpose(0, 3, 1, 2).copy(), device="cuda", requires_grad=True)
    kernel = torch.tensor(
        kernel.transpose(0, 3, 4, 5, 1, 2).reshape(N, G, 1, K * K, Ho, Wo).copy(),
        device="cuda",
        requires_grad=True,
    )
    dy = torch.tensor(dy.transpose(0, 3, 1, 2).copy(), device="cuda")

    def forward():
        windows = torch.nn.functional.unfold(x, K, padding=K // 2, stride=stride)
        windows = windows.view(N, G, C // G, K * K, Ho, Wo)
        return (kernel * windows).sum(dim=3).view(N, C, Ho, Wo)

    y = forward()
    return forward, lambda: torch.autograd.grad(y, (x, kernel), dy, True)


def layer_row(gpu, torch, N, C, H, stride, K) -> dict:
    rng = np.random.default_rng(0)
    layer = Involution2D(C, K, C // 16, 4, stride=stride, reduce_bias=False, rng=rng)
    x = rng.standard_normal((N, H, H, C), np.float32)
    dy = rng.standard_normal((N, -(-H // stride), -(-H // stride), C), np.float32)
    row = {"layer": [N, C, H, stride, K]}
    if torch is not None:
        peers = importlib.import_module("peers_pytorch")
        twin = peers.Involution(layer).to(device="cuda", memory_format=torch.channels_last).train()
        image, gradient = (
            peers.image_tensor(a).to(device="cuda", memory_format=torch.channels_last)
            for a in (x, dy)
        )
        image.requires_grad_()
        row["pytorch_forward"] = kernel_milliseconds(gpu, lambda: twin(image))
        step = peers.gradients_step(twin, image, gradient)
        row["pytorch_backward"] = kernel_milliseconds(gpu, step)
    layer.to("cuda")
    x, dy = gpu.to_device(x), gpu.to_device(dy)
    backend = importlib.import_module("scratchnet.backends.cuda.generated_involution")
    usual = backend.FUSED_CHANNELS
    try:
        for name, backend.FUSED_CHANNELS in (("made", C), ("stored", 0)):
            row[f"{name}_forward"] = kernel_milliseconds(
                gpu, lambda: layer.forward(x, training=True)
            )
            row[f"{name}_backward"] = kernel_milliseconds(gpu, lambda: layer.backward(dy))
    finally:
        backend.FUSED_CHANNELS = usual
    return row


def product_row(gpu, torch, size: int) -> dict:
    a, b = (gpu.to_device(np.ones((size, size), np.float32)) for _ in range(2))
    theirs = None
    if torch is not None:
        one, other = (torch.ones(size, size, device="cuda") for _ in range(2))
        theirs = lambda: one @ other  # noqa: E731
    name = f"product {size} x {size} x {size}"
    return rate_row(gpu, name, 2 * size**3, lambda: gpu.dense_forward(a, b, None), theirs)


def convolution_row(gpu, torch, C: int) -> dict:
    x = gpu.to_device(np.ones((64, 28, 28, C), np.float32))
    weight = gpu.to_device(np.ones((3, 3, C, C), np.float32))
    theirs = None
    if torch is not None:
        layout = {"device": "cuda", "memory_format": torch.channels_last}
        image = torch.ones(64, C, 28, 28).to(**layout)
        filters = torch.ones(C, C, 3, 3).to(**layout)
        theirs = lambda: torch.nn.functional.conv2d(image, filters, padding=1)  # noqa: E731
    name, operations = f"convolution 3x3, {C} channels", 2 * 9 * C * C * 64 * 28 * 28
    ours = lambda: gpu.conv2d_forward(x, weight, None, 1, "same")  # noqa: E731
    return rate_row(gpu, name, operations, ours, theirs)


def rate_row(gpu, name: str, operations: int, ours, theirs) -> dict:
    row = {"name": name, "ours": operations / kernel_milliseconds(gpu, ours) / 1e9}
    if theirs is not None:
        row["pytorch"] = operations / kernel_milliseconds(gpu, theirs) / 1e9
    return row


def torch_with_cuda():
    """PyTorch, without TF32; None where it is not installed or has no GPU."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch
