"""The benchmark runs and reports; its PyTorch twins are the same networks as ours."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scratchnet import Adam, Dropout, Involution2D, SoftmaxCrossEntropy
from scratchnet.models import INPUT_SHAPES, OPERATORS, report_network

ROOT = Path(__file__).parent.parent
NETWORK = "mnist/involution"


def benchmark(tmp_path, *options):
    """Run it without peers on tiny settings; returns what it printed and what it kept."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "benchmark.py", "--no-peers", "--networks", NETWORK]
        + ["--blocks", "1", "--seconds", "0.001", "--json", tmp_path / "kept.json", *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((tmp_path / "kept.json").read_text())


def test_samples_per_second(tmp_path):
    text, kept = benchmark(tmp_path)
    assert f"\n{NETWORK}" in text and "no peer" in text
    (row,) = kept["rows"]
    assert row["samples_per_second"]["scratchnet"] > 0 and row["ratio"] is None
    assert len(row["seconds_per_step_by_block"]["scratchnet"]) == 1
    assert {"cpu", "threads", "numpy", "numba", "python", "scratchnet"} <= set(kept["machine"])


def test_layers_share_the_step(tmp_path):
    text, kept = benchmark(tmp_path, "--layers")
    layers = kept["rows"][0]["layers"]
    assert len(layers) == 7 + 2  # and the loss, and Adam
    assert sum(layer["share"] for layer in layers) == pytest.approx(1)
    first = layers[0]["forward"]
    assert first["gflops"] > 0 and first["gbytes"] > 0
    assert first["to_floor"] == pytest.approx(first["ms"] / first["floor_ms"])
    assert "MaxPool2D(2)" in text


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured through /proc")
def test_memory(tmp_path):
    _, kept = benchmark(tmp_path, "--memory")
    ours = kept["rows"][0]["frameworks"]["scratchnet"]
    assert 0 <= ours["step_mb"] < ours["process_mb"]


def test_startup(tmp_path):
    _, kept = benchmark(tmp_path, "--startup")
    assert kept["rows"][0]["seconds"]["scratchnet"] > 0


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--networks", "imagenet"], 2, "invalid choice: 'imagenet'"),
        (["--device", "cuda", "--memory"], 2, "--memory is measured on the CPU"),
        (["--device", "cuda"], 1, "the cuda backend needs"),
    ],
)
def test_what_is_refused(options, status, message):
    hidden = {"CUDA_VISIBLE_DEVICES": "", "NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "benchmark.py", *options],
        env=os.environ | hidden | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status and message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def peers(monkeypatch):
    pytest.importorskip("torch", reason="PyTorch, the peer, is not installed")
    monkeypatch.syspath_prepend(ROOT / "examples")
    import peers_pytorch

    return peers_pytorch


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist", "cifar10"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_twin_in_pytorch_takes_the_same_steps(peers, dataset, operator):
    """Loss by loss, over three steps of Adam, in an independent implementation."""
    rng = np.random.default_rng(0)
    model = report_network(dataset, operator, rng=rng)
    for layer in model.leaves():
        if isinstance(layer, Dropout):
            layer.rate = 0.0  # the masks are random
    x = rng.random((8, *INPUT_SHAPES[dataset]), np.float32)
    labels = rng.integers(10, size=8)
    step = peers.training_step(model, x, labels)
    theirs = [float(step().detach()) for _ in range(4)]
    loss, optimizer = SoftmaxCrossEntropy(), Adam(model.parameters())
    ours = []
    for _ in range(4):
        ours.append(loss.forward(model.forward(x, training=True), labels))
        model.backward(loss.backward(), need_dx=False)
        optimizer.step()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert ours[-1] < ours[0]


@pytest.mark.parametrize(("C", "K", "stride", "side"), [(32, 3, 1, 5), (32, 7, 2, 8)])
def test_an_involution_in_pytorch_has_the_same_gradients(peers, C, K, stride, side):
    rng = np.random.default_rng(0)
    layer = Involution2D(C, K, C // 16, 4, stride, reduce_bias=False, rng=rng)
    x = rng.standard_normal((2, side, side, C)).astype(np.float32)
    twin = peers.Involution(layer).train()
    images = peers.image_tensor(x).requires_grad_()
    theirs = twin(images)
    y = layer.forward(x, training=True)
    np.testing.assert_allclose(y, np.moveaxis(theirs.detach().numpy(), 1, 3), rtol=1e-4, atol=1e-4)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    gradients = peers.gradients_step(twin, images, peers.image_tensor(dy))()
    dx = layer.backward(dy)
    np.testing.assert_allclose(dx, np.moveaxis(gradients[-1].numpy(), 1, 3), rtol=1e-3, atol=1e-3)
    ours = {p.name: p.grad for p in layer.parameters() if p.trainable}
    for (name, _), gradient in zip(twin.named_parameters(), gradients, strict=False):
        mine = ours[name.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta")]
        theirs = gradient.numpy()
        theirs = theirs.transpose(2, 3, 1, 0) if theirs.ndim == 4 else theirs
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3)


def test_readme_quotes_the_gpu_benchmark_as_it_is(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    cuda = importlib.import_module("benchmark_cuda")
    rows = json.loads((ROOT / "examples/report/gpu.json").read_text("utf-8"))["rows"]
    readme = (ROOT / "README.md").read_text("utf-8")
    lines = {"network": cuda.step_line, "shape": cuda.involution_line, "name": cuda.rate_line}
    lines["layer"] = cuda.layer_line
    quoted = [line(row) for row in rows for kind, line in lines.items() if kind in row]
    assert len(quoted) == len(rows) - 1  # the first tells the GPU
    for line in quoted:
        assert line in readme
