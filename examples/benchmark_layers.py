"""The parts of `benchmark.py --layers` and `--involution`: one layer's time against its floors,
which `scratchnet/profiling.py` explains.
"""

import argparse
import importlib
import statistics
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from benchmark_tools import network_and_batch, print_row

import scratchnet as sn
from scratchnet.profiling import Limits, measure, measured_limits, profile, rates, step_costs


def layers(options: argparse.Namespace) -> list[dict]:
    """Time, rates and floors of each step of our networks, as they follow one another."""
    limits = measured_limits(blocks=options.blocks)
    print(limits)
    rows = []
    for network in options.networks:
        model, x, labels = network_and_batch(network)
        optimizer = sn.Adam(model.parameters(), 1e-3)
        row = profile(model, optimizer, x, labels, limits, options.blocks * options.seconds)
        rows.append({"network": network} | row)
        print_layers(network, row)
    return rows


def print_layers(network: str, row: dict) -> None:
    rate = 1e3 * row["batch"] / row["ms"]
    print(f"\n{network}, batch {row['batch']}: {row['ms']:.2f} ms a step, {rate:,.0f} samples/s")
    titles = ["ms", "GFLOP/s", "GB/s", "/ floor"]
    print(f"{'':36}{'forward':>32}{'backward':>34}")
    print(f"{'layer':<36}" + 2 * ("".join(f"{t:>8}" for t in titles) + "  ") + f"{'share':>7}")
    for layer in row["layers"]:
        ways = "  ".join(way_cells(layer[way]) for way in ("forward", "backward"))
        print(f"{layer['layer'][:35]:<36}{ways}{layer['share']:9.1%}")


def way_cells(way: dict) -> str:
    cells = f"{way['ms']:8.3f}" if way["ms"] else " " * 8
    if way["to_floor"] is None:
        return cells + " " * 24
    flops = f"{way['gflops']:8.1f}" if way["gflops"] else " " * 8
    return cells + flops + f"{way['gbytes']:8.1f}{way['to_floor']:8.1f}"


SHAPES = [(64, 32), (128, 28), (256, 14), (512, 7)]  # channels, and the side of the image
BATCH = 32


def involution(options: argparse.Namespace) -> list[dict]:
    """The involution layer alone, G = C / 16 and reduction 4, on images of RedNet's sizes."""
    limits = measured_limits(blocks=options.blocks)
    print(limits)
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


def one_involution(C, side, K, options, limits: Limits, peer: bool) -> dict:
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
        row[way] = rates(seconds[way], *cost, limits)
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
