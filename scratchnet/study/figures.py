"""The study's figures: what `plots` draws, from the results and the trained networks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scratchnet import plots
from scratchnet.data import Batches, Dataset, Split
from scratchnet.experiment import PIXELS, load_trained
from scratchnet.layers import Conv2D, Involution2D, Residual, Sequential
from scratchnet.models import INPUT_SHAPES, NETWORKS, OPERATORS
from scratchnet.study.results import ROW_TITLES, Study, mean_history, totals
from scratchnet.study.runs import COMPACT, DATASETS, Row

SAMPLES = 4  # images whose kernels are drawn


def draw(
    study: Study, rows: Sequence[Row], folder: Path, data: dict[str, Dataset]
) -> dict[str, str]:
    """The figures that can be drawn, by file name, each with what it shows in words."""
    drawn: dict[str, str] = {}
    for dataset in DATASETS:
        title = study.title(dataset)
        found = [op for op in OPERATORS if study.outcomes(f"{dataset}/{op}")]
        if not found:
            continue
        name = f"networks-{dataset}.png"
        networks = {operator: NETWORKS[operator](dataset) for operator in found}
        plots.plot_networks(networks, INPUT_SHAPES[dataset], folder / name)
        drawn[name] = f"The networks for {title}, drawn layer by layer"
        name = f"curves-{dataset}.png"
        histories = {op: mean_history(study.outcomes(f"{dataset}/{op}")) for op in found}
        plots.plot_histories(histories, folder / name, title)
        drawn[name] = f"Accuracy and loss of convolution and involution on {title} by epoch"
    if study.results["profiles"]:
        plots.plot_speed(_speed_bars(study), folder / "speed.png")
        drawn["speed.png"] = "Time of a training step by kind of layer, and time of a multiply-add"
    points = _size_points(study)
    if points:
        plots.plot_sizes(points, folder / "sizes.png")
        drawn["sizes.png"] = "Accuracy against the number of parameters, a point a network"
    for dataset, of_dataset in data.items():
        name = f"kernels-{dataset}.png"
        if _draw_kernels(rows, folder, dataset, of_dataset, name):
            drawn[name] = f"Kernels that involutions make for images of {study.title(dataset)}"
    return drawn


def _speed_bars(study: Study) -> dict:
    """What `plots.plot_speed` takes, of the first backend."""
    of_backend = next(iter(study.results["profiles"].values()))
    steps = {}
    for name, timed in of_backend["networks"].items():
        kinds: dict[str, float] = {}
        for layer in timed["layers"]:
            kind = layer["operator"] if layer["operator"] in OPERATORS else "all other layers"
            kind = "loss and optimizer" if layer["layer"] in ("loss", "optimizer") else kind
            ms = layer["forward"]["ms"] + layer["backward"]["ms"]
            kinds[kind] = kinds.get(kind, 0.0) + 1e3 * ms / timed["batch"]
        steps[study.row_title(name)] = kinds
    single: dict[str, list[tuple[int, float]]] = {}
    for layer in of_backend["single"]:
        total = totals([layer])
        point = layer["shape"][2], 1e9 * total["ms"] / total["multiply_adds"]
        single.setdefault(layer["name"], []).append(point)
    return {"steps": steps, "single": single}


def _size_points(study: Study) -> dict[str, list[tuple[str, int, float]]]:
    """By data set: network, parameters, accuracy."""
    points: dict[str, list[tuple[str, int, float]]] = {}
    for dataset in DATASETS:
        for network, title in ROW_TITLES.items():
            row = f"{dataset}/{network}"
            if study.outcomes(row):
                point = title, study.parameters(row), study.mean(row, "accuracy")
                points.setdefault(study.title(dataset), []).append(point)
    return points


def _draw_kernels(
    rows: Sequence[Row], folder: Path, dataset: str, data: Dataset, name: str
) -> bool:
    """Heat maps of the trained involutions' kernels, and the filters of the convolution."""
    trained = {}
    for row in rows:
        network = row.name.removeprefix(f"{dataset}/")
        wanted = network in (*OPERATORS, COMPACT) and row.experiment.backend == "cpu"
        checkpoint = row.folder(folder, row.experiment) / "last.npz"
        if row.name.startswith(dataset + "/") and wanted and checkpoint.exists():
            trained[network] = load_trained(checkpoint)
    if not {"convolution", "involution"} <= trained.keys():
        return False
    images = np.stack(
        [data.test.images[np.argmax(data.test.labels == label)] for label in range(SAMPLES)]
    )
    maps = {}
    for network in ("involution", COMPACT):
        if network in trained:
            experiment, model = trained[network]
            maps[ROW_TITLES[network]] = kernel_sums(model, _seen(images, experiment.pixels))
    convolution = trained["convolution"][1].layers[0]
    assert isinstance(convolution, Conv2D)
    plots.plot_kernels(images, maps, convolution.weight.value, folder / name)
    return True


def _seen(images: np.ndarray, pixels: str) -> np.ndarray:
    """uint8 images as the network of an experiment with those pixels sees them, in float32."""
    split = Split(images, np.arange(len(images)))
    return next(iter(Batches(split, len(images), **PIXELS[pixels])))[0]


def kernel_sums(network: Sequential, x: np.ndarray) -> np.ndarray:
    """For the network's first involution, the sum of each kernel: x (N, H, W, C) -> (N, Ho, Wo, G).

    raises ValueError where the network has none
    """
    for layer in network.layers:
        if isinstance(layer, Involution2D):
            return layer.kernels(x).sum(axis=(4, 5))
        if isinstance(layer, Residual) and isinstance(layer.body, Sequential):
            if any(isinstance(part, Involution2D) for part in layer.body.layers):
                return kernel_sums(layer.body, x)
        x = layer.forward(x)
    raise ValueError(f"kernel_sums: there is no involution in {network!r}")
