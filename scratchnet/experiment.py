"""One network of the report, trained by its schedule and kept in a folder of its own.

The folder holds `experiment.json` (what was asked for), `best.npz` and `last.npz` (what `fit`
writes) and `history.json`; with these a run goes on where it stopped, or is taken as it is.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from scratchnet.checkpoint import CheckpointError
from scratchnet.data import Dataset
from scratchnet.history import Epoch, History, write_text
from scratchnet.layers import Sequential
from scratchnet.models import report_network
from scratchnet.optim import Adam
from scratchnet.progress import clock
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


@dataclass(frozen=True)
class Experiment:
    """What is trained, and how. The seed draws the weights, the dropout and the batches."""

    dataset: str
    operator: str
    epochs: int
    batch_size: int
    lr: float
    seed: int
    backend: str

    def network(self) -> Sequential:
        """The network before training."""
        rng = np.random.default_rng(self.seed)
        return report_network(self.dataset, self.operator, rng=rng).to(self.backend)


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

    resume   go on from what the folder holds of the same experiment; more epochs may be asked for
    raises   what `fit` raises; CheckpointError where the folder holds another experiment
    """
    folder = Path(folder)
    check_writable(folder)
    if resume and (folder / "last.npz").exists():
        _check_same(experiment, read_experiment(folder), folder)
    if not resume:
        for name in ("best.npz", "last.npz", "history.json"):
            (folder / name).unlink(missing_ok=True)  # a later resume must not find another run's
    write_text(folder / "experiment.json", json.dumps(asdict(experiment), indent=2) + "\n")
    network = experiment.network()
    history = fit(
        network,
        data.train,
        data.test,
        epochs=experiment.epochs,
        batch_size=experiment.batch_size,
        optimizer=Adam(network.parameters(), lr=experiment.lr),
        seed=experiment.seed,
        run_dir=folder,
        resume=resume,
        on_epoch=on_epoch,
        description=experiment.operator,
    )
    history.save(folder / "history.json")
    with clock(f"{experiment.operator}: predicting"):
        predictions = predict(network, data.test).argmax(axis=1)
    return Outcome(experiment, network, history, predictions)


def read_experiment(folder: str | Path) -> Experiment:
    """What `run_experiment` was asked for in that folder. raises CheckpointError."""
    path = Path(folder) / "experiment.json"
    try:
        return Experiment(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no {path} that says what was trained there: a training's folder is meant, "
            "such as runs/mnist/convolution"
        ) from None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from None


def load_trained(checkpoint: str | Path) -> tuple[Experiment, Sequential]:
    """The network of a checkpoint in an experiment's folder, or of the folder: its best.npz.

    raises CheckpointError where something is missing, damaged or does not fit
    """
    checkpoint = Path(checkpoint)
    if checkpoint.is_dir():
        checkpoint = checkpoint / "best.npz"
    experiment = read_experiment(checkpoint.parent)
    network = experiment.network()
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
    for name in ("dataset", "operator", "batch_size", "lr", "seed"):
        if getattr(asked, name) != getattr(kept, name):
            raise CheckpointError(
                f"{folder} holds a run with {name} {getattr(kept, name)}, not "
                f"{getattr(asked, name)}: take the same settings to resume it, or another folder"
            )
