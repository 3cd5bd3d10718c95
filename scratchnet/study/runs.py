"""The student report's study, run again and carried on: what is trained, timed and kept.

A row is a network trained in one way, by its name ("mnist/involution"), once for each seed. Every
run has a folder of its own under the study's, `DATASET/ROW/BACKEND-SEED`, with its checkpoints and
`outcome.json`; a run that is there is taken as it is, one that was stopped goes on. From the
outcomes `results.json` is made, with the times of every layer, and from that alone the report
(`report.py`).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from scratchnet.backends import BackendError, get_backend
from scratchnet.checkpoint import CheckpointError
from scratchnet.comparison import network_results, say, train
from scratchnet.data import Dataset, Split
from scratchnet.experiment import (
    SCHEDULES,
    Experiment,
    check_writable,
    usual_experiment,
)
from scratchnet.files import alone_in, write_text
from scratchnet.layers import (
    Conv2D,
    Dense,
    GlobalAvgPool2D,
    Involution2D,
    Layer,
    Sequential,
    WindowAttention2D,
)
from scratchnet.machine import gpu_name, machine, versions
from scratchnet.models import INPUT_SHAPES, NETWORKS, OPERATORS
from scratchnet.models.summary import trainable_parameters
from scratchnet.optim import Adam
from scratchnet.profiling import Limits, measured_limits, profile
from scratchnet.progress import clock

DATASETS = ("mnist", "fashion-mnist", "cifar10")
MATCHED = ("small-convolution", "wide-involution")
COMPACT = "compact-involution"
QUICK_SHARE, QUICK_EPOCHS = 10, 2
# What outcome.json, and each backend in profiles.json, has to have.
OUTCOME = ("experiment", "machine", "history", "accuracy", "parameters", "confusion", "classes")
PROFILE = ("machine", "limits", "networks", "single")


@dataclass(frozen=True)
class Row:
    """A line of the study: its name, what is trained (with seed 0), and with how many seeds."""

    name: str
    experiment: Experiment
    seeds: int

    def runs(self) -> list[Experiment]:
        return [replace(self.experiment, seed=seed) for seed in range(self.seeds)]

    def folder(self, study: Path, run: Experiment) -> Path:
        return study / self.name / f"{run.backend}-{run.seed}"


def study_rows(seeds: int, *, raw_pixels: bool, quick: bool, devices: Sequence[str]) -> list[Row]:
    """Everything that is trained, the short rows first.

    seeds        how often the report's networks are trained; those that answer it, once
    raw_pixels   also the report's way of feeding CIFAR-10
    quick        for two epochs each
    devices      "cpu", "cuda": the twins of Table 1 on each of them, the other rows on the first
    """
    first = devices[0]

    def row(name: str, seeds: int = seeds, backend: str = first, **changes) -> Row:
        dataset, network = name.split("/")[:2]
        experiment = replace(usual_experiment(dataset, network, 0, backend), **changes)
        return Row(name, replace(experiment, epochs=QUICK_EPOCHS) if quick else experiment, seeds)

    names = [f"{dataset}/{network}" for dataset in DATASETS for network in OPERATORS]
    rows = [row(name) for name in names]
    rows += [row(name, backend=device) for device in devices[1:] for name in names]
    rows += [row(f"{dataset}/attention", seeds=1) for dataset in DATASETS]
    rows.append(row("mnist/involution/softmax-twice", softmax=2))
    if raw_pixels:
        names = [f"cifar10/{name}/raw-pixels" for name in OPERATORS]
        rows += [row(name, seeds=1, pixels="0 to 255") for name in names]
    rows += [row(f"{dataset}/{name}", seeds=1) for dataset in DATASETS for name in MATCHED]
    rows += [row(f"{dataset}/{COMPACT}", seeds=1) for dataset in DATASETS]
    return rows


def study_devices(device: str) -> list[str]:
    """The backends for --device: "auto" is the CPU, and the GPU as well where there is one.

    raises BackendError where "cuda" is asked for and cannot run
    """
    if device == "cpu":
        return ["cpu"]
    try:
        get_backend("cuda")
    except BackendError:
        if device == "cuda":
            raise
        return ["cpu"]
    return ["cuda"] if device == "cuda" else ["cpu", "cuda"]


def run_study(
    rows: Sequence[Row],
    folder: str | Path,
    load: Callable[[str], Dataset],
    *,
    only: str | None = None,
    settings: dict | None = None,
) -> dict:
    """Train what is not trained yet, time the layers, write `results.json`; returns its content.

    Tells on standard output how it goes. Ctrl-C ends it after the step under way; the results are
    then those of the runs that were finished, and "interrupted" is true in them.

    load       gives a data set of that name
    only       the name of a row: train that one alone
    settings   to be kept in the results
    raises     ValueError where `only` names no row; what `run_experiment` raises
    """
    folder = Path(folder)
    check_writable(folder)
    chosen = [row for row in rows if only in (None, row.name)]
    if not chosen:
        names = ", ".join(dict.fromkeys(row.name for row in rows))
        raise ValueError(f"--only must be one of {names}, got {only!r}")
    with alone_in(folder):
        return _run_rows(rows, chosen, folder, load, only, settings)


def _run_rows(
    rows: Sequence[Row],
    chosen: Sequence[Row],
    folder: Path,
    load: Callable[[str], Dataset],
    only: str | None,
    settings: dict | None,
) -> dict:
    datasets: dict[str, Dataset] = {}
    runs = [(row, run) for row in chosen for run in row.runs()]
    interrupted = False
    for number, (row, run) in enumerate(runs, 1):
        if run.dataset not in datasets:
            datasets[run.dataset] = load(run.dataset)
        say(f"[{number}/{len(runs)}] {row.name}, seed {run.seed}, {run.backend}")
        if not _train(row, run, datasets[run.dataset], folder):
            interrupted = True
            break
    profiles = _kept(folder / "profiles.json", PROFILE, of_each=True)
    if not interrupted and only is None and profiles is None:
        profiles = time_layers(list(dict.fromkeys(row.experiment.backend for row in rows)))
        write_text(folder / "profiles.json", json.dumps(profiles, indent=1) + "\n")
    results = {
        "settings": settings or {},
        "interrupted": interrupted,
        "versions": versions(),
        "machine": machine(),
        "rows": _outcomes(rows, folder),
        "profiles": profiles,
    }
    write_text(folder / "results.json", json.dumps(results) + "\n")
    return results


def _train(row: Row, run: Experiment, data: Dataset, study: Path) -> bool:
    """Train, or take what is there; False where Ctrl-C ended it."""
    folder = row.folder(study, run)
    kept = _kept(folder / "outcome.json", OUTCOME)
    images = {"train_images": len(data.train), "test_images": len(data.test)}
    if kept and kept.items() >= ({"experiment": asdict(run)} | images).items():
        say(f"  trained before, taken from {folder}")
        return True
    outcome = train(run, data, folder, resume=True)
    if outcome.history.interrupted:
        return False
    here = machine() | ({"gpu": gpu_name()} if run.backend == "cuda" else {})
    numbers = {
        "experiment": asdict(run),
        **images,
        "classes": list(data.classes),
        "machine": here,
        **network_results(outcome, data),
    }
    write_text(folder / "outcome.json", json.dumps(numbers, indent=1) + "\n")
    return True


def _outcomes(rows: Sequence[Row], study: Path) -> dict[str, dict[str, list[dict]]]:
    """By row and backend, the outcomes that are there, by seed."""
    found: dict[str, dict[str, list[dict]]] = {}
    for row in rows:
        kept = [
            (run, _kept(row.folder(study, run) / "outcome.json", OUTCOME)) for run in row.runs()
        ]
        # Those of another study in this folder, of fewer epochs say, are no outcomes of this one.
        outcomes = [
            outcome for run, outcome in kept if outcome and outcome["experiment"] == asdict(run)
        ]
        if outcomes:
            found.setdefault(row.name, {})[row.experiment.backend] = outcomes
    return found


def _kept(path: Path, keys: Sequence[str], *, of_each: bool = False) -> dict | None:
    """A file's content, None where there is no file.

    keys       it must have; or, of_each, all that it holds must have them
    raises     CheckpointError where it is damaged
    """
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        for part in kept.values() if of_each else [kept]:
            for key in keys:
                part[key]
        return kept
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}): remove it to make it anew"
        ) from None


SHAPES = ((16, 32), (64, 32), (128, 16), (256, 8))  # channels, and the side of the image
BATCH = 64


def time_layers(backends: Sequence[str], seconds: float = 1.0) -> dict:
    """By backend: the layers of the report's networks in training, and single layers of one shape.

    seconds   for each network; a layer alone takes a quarter
    """
    return {backend: _time_layers(backend, seconds) for backend in backends}


def _time_layers(backend: str, seconds: float) -> dict:
    with clock("timing layers"):
        limits = measured_limits(backend)
        names = [f"{dataset}/{network}" for dataset in DATASETS for network in OPERATORS]
        networks = {name: _time_network(name, backend, limits, seconds) for name in names}
        single = [
            _time_layer(name, layer, shape, backend, limits, seconds / 4)
            for C, side in SHAPES
            for name, layer in _single_layers(C).items()
            for shape in [(side, side, C)]
        ]
    here = machine()
    return {"machine": here, "limits": asdict(limits), "networks": networks, "single": single}


def _time_network(name: str, backend: str, limits: Limits, seconds: float) -> dict:
    dataset, network = name.split("/")
    rng = np.random.default_rng(0)
    batch = SCHEDULES[dataset].batch_size
    model = NETWORKS[network](dataset, rng=rng).to(backend)
    x = rng.random((batch, *INPUT_SHAPES[dataset]), np.float32)
    labels = rng.integers(10, size=batch)
    return profile(model, Adam(model.parameters()), x, labels, limits, seconds)


def _single_layers(C: int) -> dict[str, Layer]:
    """Layers that take and give C channels, with groups of 16 as Li et al. have them."""
    rng = np.random.default_rng(0)
    return {
        "convolution 3 x 3": Conv2D(C, C, 3, padding="same", rng=rng),
        "involution 3 x 3": Involution2D(C, 3, C // 16, 4, rng=rng),
        "involution 7 x 7": Involution2D(C, 7, C // 16, 4, rng=rng),
        "attention 3 x 3": WindowAttention2D(C, 3, C // 16, rng=rng),
    }


def _time_layer(
    name: str, layer: Layer, shape: tuple[int, int, int], backend: str, limits, seconds: float
) -> dict:
    """One layer forward and backward, both gradients, as the second of a small network."""
    rng = np.random.default_rng(0)
    C = shape[2]
    first = Conv2D(C, C, 1, rng=rng)  # so that the layer under test makes its input's gradient
    model = Sequential(first, layer, GlobalAvgPool2D(), Dense(C, 10, rng=rng)).to(backend)
    x = rng.standard_normal((BATCH, *shape)).astype(np.float32)
    labels = rng.integers(10, size=BATCH)
    timed = profile(model, Adam(model.parameters()), x, labels, limits, seconds)
    parameters = trainable_parameters(layer)
    return {"name": name, "shape": list(shape), "batch": BATCH, "parameters": parameters} | {
        way: timed["layers"][1][way] for way in ("forward", "backward")
    }


def quick_share(data: Dataset) -> Dataset:
    """The first tenth of the images."""
    splits = [
        Split(split.images[: len(split) // QUICK_SHARE], split.labels[: len(split) // QUICK_SHARE])
        for split in (data.train, data.test)
    ]
    return Dataset(*splits, classes=data.classes, name=data.name)
