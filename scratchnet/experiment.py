"""One network, trained as its experiment says and kept in a folder of its own.

The folder holds `experiment.json` (what was asked for), `best.npz` and `last.npz` (what `fit`
writes) and `history.json`; with these a run goes on where it stopped, or is taken as it is.
"""

import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scratchnet.backends import BACKENDS
from scratchnet.checkpoint import CheckpointError
from scratchnet.checks import check_number, check_whole
from scratchnet.data import Dataset
from scratchnet.data.augment import (
    Augmentation,
    Compose,
    RandomAffine,
    RandomCrop,
    RandomFlip,
    RandomShift,
)
from scratchnet.files import alone_in, write_text
from scratchnet.history import Epoch, History
from scratchnet.layers import Sequential
from scratchnet.losses import SoftmaxCrossEntropy, SoftmaxTwiceCrossEntropy
from scratchnet.models import NETWORKS
from scratchnet.optim import Adam, AdamW
from scratchnet.progress import clock
from scratchnet.schedules import CosineSchedule
from scratchnet.training import fit, load_model, predict


@dataclass(frozen=True)
class Schedule:
    """How long and in what steps a data set's networks are trained, by Adam."""

    epochs: int
    batch_size: int
    lr: float = 1e-3


SCHEDULES = {
    "glyphs": Schedule(10, 128),
    "mnist": Schedule(15, 128),
    "fashion-mnist": Schedule(10, 128),
    "cifar10": Schedule(10, 256),
}
COMPACT_SCHEDULES = {
    "glyphs": Schedule(20, 128, 3e-3),
    "mnist": Schedule(20, 128, 3e-3),
    "fashion-mnist": Schedule(16, 128, 3e-3),
    "cifar10": Schedule(20, 128, 3e-3),
}

RUN_FILES = ("experiment.json", "history.json", "best.npz", "last.npz")

# What pixels of 0 to 255 become before a network sees them: (pixel * scale - mean) / std.
PIXELS = {
    "0 to 1": {"scale": 1 / 255},
    "0 to 255": {"scale": 1.0},
    "-2 to 2": {"scale": 1 / 255, "mean": 0.5, "std": 0.25},
}
TRAININGS = {"report": "Adam", "compact": "AdamW along a cosine"}  # and their optimizers
# Changes that leave an image of its class: a digit has no mirror image.
AUGMENTATIONS: dict[str, Augmentation] = {
    "glyphs": RandomShift(2),
    "mnist": RandomAffine(degrees=12, zoom=1.12, pixels=2),
    "fashion-mnist": Compose(RandomFlip(), RandomShift(2)),
    "cifar10": Compose(RandomFlip(), RandomCrop(4)),
}


@dataclass(frozen=True)
class Experiment:
    """What is trained, and how. The seed draws the weights, the dropout and the batches.

    network    a name of `models.NETWORKS`
    training   a name of TRAININGS: "report" at a constant rate, "compact" on augmented images
    pixels     a name of PIXELS
    softmax    how often the softmax is applied, 1 or 2: the report's MNIST involution put one into
               the network and another into the loss
    """

    dataset: str
    network: str
    epochs: int
    batch_size: int
    lr: float
    seed: int
    backend: str
    training: str = "report"
    pixels: str = "0 to 1"
    softmax: int = 1

    def build(self) -> Sequential:
        """The network before training."""
        rng = np.random.default_rng(self.seed)
        return NETWORKS[self.network](self.dataset, rng=rng).to(self.backend)

    def loss(self) -> SoftmaxCrossEntropy:
        """What training makes small."""
        loss = SoftmaxTwiceCrossEntropy() if self.softmax == 2 else SoftmaxCrossEntropy()
        return loss.to(self.backend)

    def settings(self, network: Sequential, images: int) -> dict[str, Any]:
        """What `fit` is given for the network, on so many training images."""
        parameters = network.parameters()
        if self.training == "report":
            how = {"optimizer": Adam(parameters, lr=self.lr)}
        else:
            steps = self.epochs * math.ceil(images / self.batch_size)
            how = {
                "optimizer": AdamW(parameters, self.lr, weight_decay=0.05),
                "schedule": CosineSchedule(self.lr, steps, warmup=steps // 6),
                "augment": AUGMENTATIONS[self.dataset],
            }
        return how | {"loss": self.loss()} | PIXELS[self.pixels]


def usual_experiment(
    dataset: str,
    network: str,
    seed: int,
    backend: str,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
) -> Experiment:
    """The network trained in its usual way, but for what is given."""
    compact = network == "compact-involution"
    schedule = (COMPACT_SCHEDULES if compact else SCHEDULES)[dataset]
    experiment = Experiment(
        dataset=dataset,
        network=network,
        epochs=epochs or schedule.epochs,
        batch_size=batch_size or schedule.batch_size,
        lr=lr or schedule.lr,
        seed=seed,
        backend=backend,
    )
    return replace(experiment, training="compact", pixels="-2 to 2") if compact else experiment


@dataclass(frozen=True, eq=False)
class Outcome:
    """A trained network, how it came about, and what it says of the test images.

    predictions   (test images,)   classes, of the network as it was when training ended
    """

    experiment: Experiment
    network: Sequential
    history: History
    predictions: np.ndarray


def run_experiment(
    experiment: Experiment,
    data: Dataset,
    folder: str | Path,
    *,
    resume: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Outcome:
    """Train the experiment's network on the data, and keep it in the folder.

    resume   go on from what the folder holds of the same experiment; more epochs may be asked for.
             Else a run that is there moves into a folder beside it, `previous-1` and so on
    raises   what `fit` raises; CheckpointError where the folder holds another experiment;
             BlockingIOError where another process trains there
    """
    folder = Path(folder)
    check_writable(folder)
    with alone_in(folder):
        return _run(experiment, data, folder, resume, on_epoch)


def _run(
    experiment: Experiment,
    data: Dataset,
    folder: Path,
    resume: bool,
    on_epoch: Callable[[Epoch], None] | None,
) -> Outcome:
    goes_on = resume and (folder / "last.npz").exists()
    if goes_on:
        _check_same(experiment, read_experiment(folder), folder)
    else:
        if not resume:
            _clear(folder)  # a later resume must not find another run's
        _write_experiment(experiment, folder)
    network = experiment.build()
    history = fit(
        network,
        data.train,
        data.test,
        epochs=experiment.epochs,
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        run_dir=folder,
        resume=resume,
        on_epoch=on_epoch,
        description=experiment.network,
        **experiment.settings(network, len(data.train)),
    )
    history.save(folder / "history.json")
    if goes_on:
        epochs = max(experiment.epochs, len(history.epochs))  # fewer may have been asked for
        _write_experiment(replace(experiment, epochs=epochs), folder)
    with clock(f"{experiment.network}: predicting"):
        logits = predict(network, data.test, **PIXELS[experiment.pixels])
    return Outcome(experiment, network, history, logits.argmax(axis=1))


def _write_experiment(experiment: Experiment, folder: Path) -> None:
    write_text(folder / "experiment.json", json.dumps(asdict(experiment), indent=2) + "\n")


def _clear(folder: Path) -> None:
    """The files of a run into a new folder; what is left of one that wrote nothing, away."""
    if any((folder / name).exists() for name in RUN_FILES if name != "experiment.json"):
        move_aside(folder, RUN_FILES)
    else:
        (folder / "experiment.json").unlink(missing_ok=True)


def move_aside(folder: Path, names: Iterable[str]) -> Path | None:
    """Those of the folder's files that are there into a new folder in it, which is returned."""
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        return None
    previous = previous_folder(folder)
    previous.mkdir()
    for path in found:
        path.replace(previous / path.name)
    return previous


def previous_folder(folder: Path) -> Path:
    """Where the run that is in the folder moves when another is trained there."""
    return next(path for n in itertools.count(1) if not (path := folder / f"previous-{n}").exists())


def read_experiment(folder: str | Path) -> Experiment:
    """What `run_experiment` was asked for in that folder. raises CheckpointError."""
    path = Path(folder) / "experiment.json"
    try:
        experiment = Experiment(**json.loads(path.read_text(encoding="utf-8")))
        for name, choices in (
            ("dataset", SCHEDULES), ("network", NETWORKS), ("pixels", PIXELS), ("softmax", (1, 2)),
            ("training", TRAININGS), ("backend", (*BACKENDS, "cuda")),
        ):  # fmt: skip
            if getattr(experiment, name) not in choices:
                raise ValueError(f"its {name} is {getattr(experiment, name)!r}")
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            check_whole("experiment", name, getattr(experiment, name), least)
        check_number("experiment", "lr", experiment.lr, 0)
        return experiment
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no {path} that says what was trained there: a training's folder is meant, "
            "such as runs/mnist/convolution"
        ) from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from None


def load_trained(
    checkpoint: str | Path, backend: str | None = None
) -> tuple[Experiment, Sequential]:
    """The network of a checkpoint in an experiment's folder, or of the folder: its best.npz.

    backend   to have it on; else that of its training
    raises    CheckpointError where something is missing, damaged or does not fit
    """
    checkpoint = Path(checkpoint)
    if checkpoint.is_dir():
        checkpoint = checkpoint / "best.npz"
    experiment = read_experiment(checkpoint.parent)
    experiment = replace(experiment, backend=backend or experiment.backend)
    network = experiment.build()
    load_model(network, checkpoint)
    return experiment, network


def check_writable(folder: str | Path) -> None:
    """Make the folder and write into it, so that a long training need not end in an error.

    raises OSError, naming the folder
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


def _check_same(asked: Experiment, kept: Experiment, folder: Path) -> None:
    """All settings but the number of epochs and the backend are those of the folder."""
    for name in (
        "dataset", "network", "batch_size", "lr", "seed", "training", "pixels", "softmax"
    ):  # fmt: skip
        if getattr(asked, name) != getattr(kept, name):
            raise CheckpointError(
                f"{folder} holds a run with {name} {getattr(kept, name)}, not "
                f"{getattr(asked, name)}: take the same settings to resume it, or another folder"
            )
