"""The parts of `benchmark.py --layers` and `--involution`: one layer's time against its floors.

    bytes floor        what a layer must read and write, at the speed of a copy
    operations floor   its multiply-adds, at the speed of a large matrix product

The larger of the two is the floor. Layers whose arrays stay in a cache can pass below the first,
those that save multiplications (Winograd) below the second.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from benchmark_tools import measure, network_and_batch, print_row
from numba import njit, prange

import scratchnet as sn
from scratchnet.layers.fused import FusedConv2D


@njit(parallel=True)
def copy(target, source):
    for block in prange(64):
        size = source.size // 64
        target[block * size : (block + 1) * size] = source[block * size : (block + 1) * size]


def measured_limits(blocks: int) -> tuple[float, float]:
    """Bytes a second, read and written, of a copy far larger than any cache, and multiply-adds a
    second of a float32 matrix product of side 2048; both with all threads. Prints them.
    """
    source = np.ones(64 * 2**20, np.float32)
    target = np.zeros_like(source)
    a, b = np.ones((2, 2048, 2048), np.float32)
    calls = {"copy": lambda: copy(target, source), "product": lambda: a @ b}
    seconds = measure(calls, blocks, 0.1)
    bandwidth = 2 * source.nbytes / statistics.median(seconds["copy"])
    rate = 2048**3 / statistics.median(seconds["product"])
    print(
        f"copy {bandwidth / 1e9:.1f} GB/s (read and written), product {2 * rate / 1e9:.0f} GFLOP/s"
    )
    return bandwidth, rate


def layers(options: argparse.Namespace) -> list[dict]:
    """Time, rates and floors of each step of our networks, as they follow one another."""
    limits = measured_limits(options.blocks)
    return [profile(network, options, limits) for network in options.networks]


def profile(network: str, options: argparse.Namespace, limits: tuple[float, float]) -> dict:
    model, x, labels = network_and_batch(network)
    loss, optimizer = sn.SoftmaxCrossEntropy(), sn.Adam(model.parameters(), 1e-3)
    names = [*map(step_name, model.steps), "loss", "Adam"]
    forward = [[] for _ in names]
    backward = [[] for _ in names]
    began = time.perf_counter()
    while len(forward[0]) < 10 or time.perf_counter() - began < options.blocks * options.seconds:
        arrays = one_step(model, loss, optimizer, x, labels, forward, backward)
    # Medians over single steps, the first of which compile and fill the memory pool.
    forward_ms = [1e3 * statistics.median(times[3:]) for times in forward]
    backward_ms = [1e3 * statistics.median(times[3:]) for times in backward]
    total = sum(forward_ms) + sum(backward_ms)
    print(
        f"\n{network}, batch {len(x)}: {total:.2f} ms a step, {1e3 * len(x) / total:,.0f} samples/s"
    )
    titles = ["ms", "GFLOP/s", "GB/s", "/ floor"]
    print(f"{'':36}{'forward':>32}{'backward':>34}")
    print(f"{'layer':<36}" + 2 * ("".join(f"{t:>8}" for t in titles) + "  ") + f"{'share':>7}")
    rows = []
    for i, name in enumerate(names):
        ways = [{"ms": forward_ms[i]}, {"ms": backward_ms[i]}]
        if i < len(model.steps):
            costs = step_costs(model.steps[i], *arrays[i])
            for way, cost in zip(ways, costs, strict=True):
                way |= rates(way["ms"] / 1e3, *cost, limits)
        share = (forward_ms[i] + backward_ms[i]) / total
        print(f"{name[:35]:<36}" + "  ".join(map(way_cells, ways)) + f"{share:9.1%}")
        rows.append({"layer": name, "forward": ways[0], "backward": ways[1], "share": share})
    return {"network": network, "batch": len(x), "ms": total, "layers": rows}


def one_step(model, loss, optimizer, x, labels, forward, backward) -> list[tuple]:
    """A training step, each part timed into the lists; returns (x, y, dx) of each layer."""

    def clocked(times: list[float], call: Callable):
        began = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - began)
        return result

    arrays = []
    for i, step in enumerate(model.steps):
        y = clocked(forward[i], lambda step=step, x=x: step.forward(x, training=True))
        arrays.append((x, y))
        x = y
    clocked(forward[-2], lambda: loss.forward(x, labels))
    dy = clocked(backward[-2], loss.backward)
    for i, step in reversed(list(enumerate(model.steps))):
        dy = clocked(backward[i], lambda step=step, dy=dy, i=i: step.backward(dy, i > 0))
        arrays[i] += (dy,)
    forward[-1].append(0.0)
    clocked(backward[-1], optimizer.step)
    return arrays


def step_name(step: sn.Layer) -> str:
    """A fused step is named by the layers it stands for."""
    if isinstance(step, FusedConv2D):
        pool = f" {step.pool!r}" if step.pool else ""
        return f"{step.conv!r} ReLU(){pool}"
    return repr(step).replace("kernel_size=", "")


def step_costs(step: sn.Layer, x, y, dx) -> list[tuple[int, int]]:
    """(bytes, multiply-adds) that forward and backward cannot do without.

    Backward reads what forward remembered. Its multiply-adds are those of two products, for the
    gradients of the weights and of the input; the first layer of a network does without the second.
    """
    if np.shares_memory(x, y):
        return [(0, 0), (0, 0)]  # flatten, which only gives the array another shape
    layer = step.conv if isinstance(step, FusedConv2D) else step
    weights = sum(p.value.nbytes for p in layer.parameters() if p.trainable)
    remembered = [a for a in vars(step).values() if isinstance(a, np.ndarray)]
    kept = sum(a.nbytes for a in remembered)
    taps = sum(a.nbytes for a in remembered if a.dtype.kind == "u")  # written beside y by a pool
    forward = len(x) * layer.flops(x.shape[1:])
    backward = 2 * forward
    if dx is None:
        backward -= len(x) * input_gradient_flops(layer, x.shape[1:])
    dx_bytes = 0 if dx is None else dx.nbytes
    return [
        (x.nbytes + y.nbytes + taps + weights, forward),
        (y.nbytes + kept + dx_bytes + 2 * weights, backward),
    ]


def input_gradient_flops(layer: sn.Layer, shape: tuple[int, ...]) -> int:
    """Multiply-adds that only the input's gradient needs: of an involution, all but `span`'s."""
    if not isinstance(layer, sn.Involution2D):
        return layer.flops(shape)
    Ho, Wo, _ = layer.output_shape(shape)
    return layer.flops(shape) - layer.span.flops((Ho, Wo, layer.span.in_channels))


def rates(seconds: float, bytes_: int, flops: int, limits: tuple[float, float]) -> dict:
    floor = max(bytes_ / limits[0], flops / limits[1])
    return {
        "gflops": 2 * flops / seconds / 1e9,
        "gbytes": bytes_ / seconds / 1e9,
        "floor_ms": 1e3 * floor,
        "to_floor": seconds / floor if floor else None,
    }


def way_cells(way: dict) -> str:
    cells = f"{way['ms']:8.3f}" if way["ms"] else " " * 8
    if way.get("to_floor") is None:
        return cells + " " * 24
    flops = f"{way['gflops']:8.1f}" if way["gflops"] else " " * 8
    return cells + flops + f"{way['gbytes']:8.1f}{way['to_floor']:8.1f}"


SHAPES = [(64, 32), (128, 28), (256, 14), (512, 7)]  # channels, and the side of the image
BATCH = 32


def involution(options: argparse.Namespace) -> list[dict]:
    """The involution layer alone, G = C / 16 and reduction 4, on images of RedNet's sizes."""
    limits = measured_limits(options.blocks)
    peer = options.peers and find_spec("torch") is not None
    print(
        f"Involution layer in training, batch {BATCH}: ms, times its floor, PyTorch's unfold in ms"
    )
    titles = ["/ floor", "unfold", "faster"][: 3 if peer else 1]
    print_row(["image", "K", "forward", *titles, "backward", *titles])
    rows = []
    for C, side in SHAPES:
        for K in (3, 7):
            row = one_involution(C, side, K, options, limits, peer)
            cells = [str(K)]
            for way in ("forward", "backward"):
                cells += [f"{row[way]['ms']:.2f}", f"{row[way]['to_floor']:.1f}"]
                if peer:
                    cells += [f"{row[way]['unfold_ms']:.1f}", f"{row[way]['faster']:.1f} x"]
            print_row([f"{side} x {side} x {C}", *cells])
            rows.append(row)
    return rows


def one_involution(C, side, K, options, limits, peer: bool) -> dict:
    rng = np.random.default_rng(0)
    layer = sn.Involution2D(C, K, C // 16, 4, reduce_bias=False, rng=rng)
    x = rng.standard_normal((BATCH, side, side, C)).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    y = layer.forward(x, training=True)
    costs = step_costs(layer, x, y, x)
    calls = {
        "forward": lambda: layer.forward(x, training=True),
        "backward": lambda: layer.backward(dy),
    }
    if peer:
        calls |= unfold_calls(layer, x, dy)
    seconds = {
        name: statistics.median(blocks)
        for name, blocks in measure(calls, options.blocks, options.seconds / 4).items()
    }
    row = {"C": C, "side": side, "K": K}
    for way, cost in zip(("forward", "backward"), costs, strict=True):
        row[way] = {"ms": 1e3 * seconds[way]} | rates(seconds[way], *cost, limits)
        if peer:
            row[way]["unfold_ms"] = 1e3 * seconds[f"unfold {way}"]
            row[way]["faster"] = seconds[f"unfold {way}"] / seconds[way]
    return row


def unfold_calls(layer: sn.Involution2D, x: np.ndarray, dy: np.ndarray) -> dict[str, Callable]:
    """Forward and backward of the layer's twin in PyTorch."""
    peer = importlib.import_module("peers_pytorch")
    net = peer.Involution(layer).train()
    images = peer.image_tensor(x).requires_grad_()
    return {
        "unfold forward": lambda: net(images),
        "unfold backward": peer.gradients_step(net, images, peer.image_tensor(dy)),
    }
