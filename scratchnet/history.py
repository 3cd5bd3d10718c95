"""What a training reports: one record an epoch, kept as JSON."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scratchnet.files import write_text


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data.

    epoch               from 1
    loss, accuracy      means over the epoch's batches as they were trained on; nats, and 0 to 1
    val_loss, val_accuracy   over the validation data afterwards; None where there is none
    seconds             of training steps, without validation and compilation
    val_seconds         of validation
    images_per_second   images trained on, over seconds
    lr                  the last step's learning rate
    """

    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    seconds: float
    val_seconds: float
    images_per_second: float
    lr: float


@dataclass
class History:
    """The epochs of a training, and the seconds that compilation took before them."""

    epochs: list[Epoch] = field(default_factory=list)
    compile_seconds: float = 0.0
    interrupted: bool = False

    @property
    def training_seconds(self) -> float:
        """Seconds of training steps over all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def best(self) -> Epoch | None:
        """The epoch with the highest validation accuracy, the earliest of equals."""
        validated = [epoch for epoch in self.epochs if epoch.val_accuracy is not None]
        return max(validated, key=lambda epoch: epoch.val_accuracy, default=None)

    def to_dict(self) -> dict:
        """What `from_dict` takes: numbers, lists and strings only."""
        return asdict(self)

    @staticmethod
    def from_dict(record: dict) -> "History":
        """The history that `to_dict` wrote down."""
        epochs = [Epoch(**epoch) for epoch in record["epochs"]]
        return History(epochs, record["compile_seconds"], record["interrupted"])

    def save(self, path: str | Path) -> Path:
        """Write the history as JSON, whole or not at all. Returns the path."""
        return write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @staticmethod
    def load(path: str | Path) -> "History":
        """Read what `save` wrote."""
        return History.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def plot(self, path: str | Path) -> Path:
        """Draw accuracy and loss against epochs, training and validation. Returns the path."""
        from scratchnet import plots  # matplotlib takes longer to import than all the rest

        return plots.plot_histories({"": self}, path)
