"""The training loop: forward, loss, backward, update; then validation, and a checkpoint.

An epoch's order of images comes from (seed, epoch) alone, so a run that was interrupted at any
step and resumed ends in the same bits as an unbroken one.

On a GPU, what a step starts is recorded at the first step of an epoch and replayed at the others.
"""

import copy
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scratchnet.backends import get_backend
from scratchnet.backends.host import normalised
from scratchnet.checkpoint import CheckpointError, check_arrays, load_checkpoint, save_checkpoint
from scratchnet.checks import check_number, check_whole
from scratchnet.data import Batches, Split
from scratchnet.history import Epoch, History
from scratchnet.layers import Layer, Residual, Sequential
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.optim import Optimizer, clip_gradients
from scratchnet.progress import clock, redrawn

IN_FLIGHT = 16  # steps whose losses stay on a GPU, before training waits for them


class TrainingDiverged(ArithmeticError):
    """A loss that is not finite: says in which epoch and step, and from which layer it came."""


def fit(
    model: Layer,
    train: Split,
    validation: Split | None = None,
    *,
    epochs: int,
    batch_size: int,
    optimizer: Optimizer,
    loss: SoftmaxCrossEntropy | None = None,
    schedule: Callable[[int], float] | None = None,
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    scale: float = 1 / 255,
    mean: np.ndarray | None = None,
    std: np.ndarray | None = None,
    clip_norm: float | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[Epoch], None] | None = None,
    description: str = "",
) -> History:
    """Train the model for a number of epochs, in place.

    A bar shows loss, accuracy, images/s and the time left where the terminal can show one. With
    run_dir, `best.npz` (highest validation accuracy) and `last.npz` are kept there, and
    resume=True goes on from `last.npz` if there is one. Ctrl-C ends the training after the step
    under way; what was learned stays in the model and in `last.npz`, and history.interrupted is
    set.

    train, validation   images (N, H, W, C) uint8 and labels (N,)
    schedule            learning rate for the number of steps that the optimizer has made; else
                        optimizer.lr stays, or is that of last.npz
    augment             called on each batch of training images with a seeded generator
    scale, mean, std    pixels become (pixel * scale - mean) / std
    clip_norm           upper bound for the common norm of all gradients
    seed                of the order of images and of augmentation
    on_epoch            called after each epoch, after its checkpoint is written
    raises              TrainingDiverged where the loss is not finite; ValueError, TypeError for
                        bad settings or data; CheckpointError where last.npz is of another run;
                        OSError where run_dir cannot be written
    """
    epochs = check_whole("fit", "epochs", epochs)
    batch_size = check_whole("fit", "batch_size", batch_size)
    seed = check_whole("fit", "seed", seed, 0)
    _check_parts(model, optimizer, loss, schedule=schedule, augment=augment, on_epoch=on_epoch)
    _check_data(model, train=train, validation=validation)
    loss = loss or SoftmaxCrossEntropy().to(model.backend)
    pixels = {"scale": scale, "mean": mean, "std": std}
    settings = {
        "seed": seed,
        "batch_size": batch_size,
        "training_images": len(train),
        "clip_norm": clip_norm,
        **{name: None if value is None else np.asarray(value).tolist()
           for name, value in pixels.items()},
    }  # fmt: skip
    run = _Run(model, optimizer, settings, run_dir)
    if resume:
        run.resume()
    run.history.interrupted = False
    if run.epoch < epochs:
        with clock(f"{description}: compiling" if description else "compiling"):
            trained, evaluated = (
                _sizes_to_compile(split, batch_size, model.backend) for split in (train, validation)
            )
            compiling = warm_up(
                model, train, loss, optimizer, pixels, clip_norm, trained, evaluated
            )
        run.history.compile_seconds += compiling
    total = epochs * math.ceil(len(train.labels) / batch_size)
    with (
        _interruptible() as interrupted,
        _bar(total, run, batch_size, train) as bar,
        redrawn(bar),
    ):
        while run.epoch < epochs and not interrupted.is_set():
            bar.set_description_str(f"{description} {run.epoch + 1}/{epochs}".lstrip())
            rng = np.random.default_rng([seed, run.epoch])
            batches = Batches(train, batch_size, rng=rng, augment=augment, **pixels)
            # Anew, as between epochs on_epoch may change what a recording holds fixed.
            train_step = _step_of(model, loss, optimizer, batches, clip_norm)
            began = time.perf_counter()
            for step, (images, labels) in enumerate(batches.raw()):
                if step < run.step:
                    continue  # trained on before the interruption
                if schedule is not None:
                    rate = schedule(optimizer.steps)
                    optimizer.lr = check_number("fit", "what schedule returns", rate, 0)
                value, correct = train_step(images, labels)
                run.count(value, correct, len(labels))
                if isinstance(value, float) or len(run.pending) == IN_FLIGHT:
                    run.settle(images, batches)
                bar.update()
                bar.set_postfix_str(run.progress(began), refresh=False)
                if interrupted.is_set():
                    break
            if run.pending:
                run.settle(images, batches)
            run.seconds += time.perf_counter() - began
            if run.step == len(batches):
                record = run.close_epoch(validation, loss, batch_size, pixels)
                if on_epoch is not None:
                    on_epoch(record)
    if interrupted.is_set():
        run.history.interrupted = True
        run.save("last.npz")
    return run.history


def evaluate(
    model: Layer,
    data: Split,
    *,
    batch_size: int = 256,
    loss: SoftmaxCrossEntropy | None = None,
    scale: float = 1 / 255,
    mean: np.ndarray | None = None,
    std: np.ndarray | None = None,
) -> tuple[float, float]:
    """Mean loss (nats) and accuracy (0 to 1) of the model on the data, in evaluation mode."""
    loss = loss or SoftmaxCrossEntropy().to(model.backend)
    total_loss, correct = 0.0, 0
    ops = get_backend(model.backend)
    for x, labels in _normalised(Batches(data, batch_size, scale=scale, mean=mean, std=std), ops):
        logits = model.forward(x)
        total_loss += float(loss.forward(logits, labels)) * len(labels)
        correct += int(ops.count_correct(logits, labels))
    return total_loss / len(data.labels), correct / len(data.labels)


def predict(
    model: Layer,
    data: Split,
    *,
    batch_size: int = 256,
    scale: float = 1 / 255,
    mean: np.ndarray | None = None,
    std: np.ndarray | None = None,
) -> np.ndarray:
    """The logits of every image, in order: (N, classes)."""
    ops = get_backend(model.backend)
    batches = _normalised(Batches(data, batch_size, scale=scale, mean=mean, std=std), ops)
    return np.concatenate([np.array(ops.to_host(model.forward(x))) for x, _ in batches])


def _normalised(batches: Batches, ops: Any) -> Iterator[tuple[Any, np.ndarray]]:
    """The batches, with x where the backend computes."""
    factor, offset = ops.to_device(batches.factor), ops.to_device(batches.offset)
    for images, labels in batches.raw():
        yield ops.normalised(images, factor, offset), labels


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How many images of each true class (row) were given each class (column): (classes,) * 2.

    labels, predicted   (N,) whole numbers; raises ValueError for one outside 0 .. classes - 1,
                        TypeError for other kinds, ValueError where they are not as many
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    for name, given in (("labels", labels), ("predicted", predicted)):
        if given.dtype.kind not in "iu":
            raise TypeError(f"confusion_matrix: {name} must be whole numbers, got {given.dtype}")
        if given.shape != (labels.size,):
            raise ValueError(
                f"confusion_matrix: {name} must have shape ({labels.size},), got {given.shape}"
            )
        if np.size(given) and not (0 <= np.min(given) and np.max(given) < classes):
            raise ValueError(
                f"confusion_matrix: {name} must lie in 0..{classes - 1}, got {np.min(given)} to "
                f"{np.max(given)}"
            )
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def warm_up(
    model: Layer,
    train: Split,
    loss: SoftmaxCrossEntropy,
    optimizer: Optimizer,
    pixels: dict[str, Any],
    clip_norm: float | None = None,
    trained: Collection[int] = (2,),
    evaluated: Collection[int] = (2,),
) -> float:
    """Compile what training will run, by steps of a copy. Returns the seconds.

    trained, evaluated   numbers of images in a batch
    """
    began = time.perf_counter()
    model, loss, optimizer = copy.deepcopy((model, loss, optimizer))
    ops = get_backend(model.backend)
    for count in sorted({*trained, *evaluated}):
        batches = Batches(Split(train.images[:count], train.labels[:count]), count, **pixels)
        if count in trained:
            images, labels = next(batches.raw())
            _step_of(model, loss, optimizer, batches, clip_norm)(images, labels)
        if count in evaluated:
            x, labels = next(_normalised(batches, ops))
            ops.count_correct(model.forward(x), labels)
    return time.perf_counter() - began


def _sizes_to_compile(split: Split | None, batch_size: int, backend: str) -> set[int]:
    """Of an epoch's batches, the last as well, where kernels are chosen by them: on a GPU."""
    if split is None:
        return set()
    if backend != "cuda":
        return {2}
    return {min(batch_size, len(split)), len(split) % batch_size} - {0}


def first_non_finite(model: Layer, x: np.ndarray, name: str = "") -> str | None:
    """The name and kind of the first layer whose output for x is not finite; None where all are.

    Layers are named as their parameters are: "2" is the third of a `Sequential`, "4.body.0" the
    first in the body of the residual block that is its fifth. The model's running statistics
    change as in training.
    """
    to_host = get_backend(model.backend).to_host
    if not np.isfinite(to_host(x)).all():
        return "the input"
    if isinstance(model, Sequential):
        for i, layer in enumerate(model.layers):
            found = first_non_finite(layer, x, f"{name}.{i}".lstrip("."))
            if found:
                return found
            x = layer.forward(x, training=True)
        return None
    if isinstance(model, Residual):
        for part_name, part in model.parts.items():
            found = first_non_finite(part, x, f"{name}.{part_name}".lstrip("."))
            if found:
                return found
    if np.isfinite(to_host(model.forward(x, training=True))).all():
        return None
    return f"layer {name or 0} ({model!r})"


class _Run:
    """A training under way: where it stands, and how it is written down."""

    def __init__(
        self,
        model: Layer,
        optimizer: Optimizer,
        settings: dict[str, int],
        run_dir: str | Path | None,
    ):
        self.model = model
        self.optimizer = optimizer
        self.settings = settings | {"optimizer": type(optimizer).__name__}
        self.run_dir = None if run_dir is None else Path(run_dir)
        if self.run_dir is not None:
            # Found out now, not after an epoch of training.
            self.run_dir.mkdir(parents=True, exist_ok=True)
            if not os.access(self.run_dir, os.W_OK):
                raise PermissionError(f"fit: cannot write to run_dir {self.run_dir}")
        self.history = History()
        self.epoch = 0
        self.start_epoch()

    def start_epoch(self) -> None:
        self.step = 0
        self.images = 0
        self.loss_sum = 0.0
        self.correct = 0
        self.seconds = 0.0
        self.pending: list[tuple[Any, Any, int]] = []

    def count(self, value: Any, correct: Any, images: int) -> None:
        """Note a step; its numbers may still be on a GPU."""
        self.step += 1
        self.pending.append((value, correct, images))

    def settle(self, last: np.ndarray, batches: Batches) -> None:
        """Add the steps noted to the epoch's means; last are the images of the last one.

        raises TrainingDiverged where a loss is not finite
        """
        first = self.step - len(self.pending)
        for step, (value, correct, images) in enumerate(self.pending, first):
            value = float(value)  # waits for a GPU
            if not math.isfinite(value):
                self.diverged(step, value, normalised(last, batches.factor, batches.offset))
            self.images += images
            self.loss_sum += value * images
            self.correct += int(correct)
        self.pending = []

    def progress(self, began: float) -> str:
        """What the bar shows beside the time left."""
        if not self.images:
            return ""
        seconds = self.seconds + time.perf_counter() - began
        return (
            f"loss {self.loss_sum / self.images:.3f}, accuracy {self.correct / self.images:.1%}, "
            f"{self.images / seconds:,.0f} images/s"
        )

    def diverged(self, step: int, value: float, x: np.ndarray) -> None:
        """Raise with the place where numbers stopped being finite."""
        origin = first_non_finite(self.model, x) or "the loss itself"
        raise TrainingDiverged(
            f"the loss became {value} in epoch {self.epoch + 1}, step {step + 1}; first not "
            f"finite: {origin}. A lower learning rate or clip_norm may help"
        )

    def close_epoch(
        self, validation: Split | None, loss: SoftmaxCrossEntropy, batch_size: int, pixels: dict
    ) -> Epoch:
        """Validate, record the epoch, write checkpoints."""
        began = time.perf_counter()
        val_loss = val_accuracy = None
        if validation is not None:
            val_loss, val_accuracy = evaluate(
                self.model, validation, batch_size=batch_size, loss=loss, **pixels
            )
            if not math.isfinite(val_loss):
                raise TrainingDiverged(
                    f"the validation loss became {val_loss} after epoch {self.epoch + 1}. A lower "
                    "learning rate or clip_norm may help"
                )
        record = Epoch(
            epoch=self.epoch + 1,
            loss=self.loss_sum / self.images,
            accuracy=self.correct / self.images,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            seconds=self.seconds,
            val_seconds=time.perf_counter() - began,
            images_per_second=self.images / self.seconds,
            lr=self.optimizer.lr,
        )
        self.history.epochs.append(record)
        self.epoch += 1
        self.start_epoch()
        # The best first: where its writing is cut off, the epoch is done again from last.npz.
        if self.history.best is record:
            self.save("best.npz")
        self.save("last.npz")
        return record

    def save(self, name: str) -> None:
        """Write everything that a resumed run needs."""
        if self.run_dir is None:
            return
        arrays = {f"model.{k}": v for k, v in self.model.state().items()}
        arrays |= {f"optimizer.{k}": v for k, v in self.optimizer.state().items()}
        counters = ("epoch", "step", "images", "loss_sum", "correct", "seconds")
        meta = {
            "settings": self.settings,
            "lr": self.optimizer.lr,
            "generators": [g.bit_generator.state for g in self.model.generators()],
            "history": self.history.to_dict(),
            **{name: getattr(self, name) for name in counters},
        }
        save_checkpoint(self.run_dir / name, arrays, meta)

    def resume(self) -> None:
        """Take up what `save` wrote to last.npz, if it is there and of a run like this one."""
        if self.run_dir is None:
            raise ValueError("fit: resume needs run_dir")
        path = self.run_dir / "last.npz"
        if not path.exists():
            return
        arrays, meta = load_checkpoint(path)
        written = meta.get("settings", {})
        for key, value in self.settings.items():
            if key in written and written[key] != value:
                raise CheckpointError(f"{path} is of a run with {key} {written[key]}, not {value}")
        counters = ("epoch", "step", "images", "loss_sum", "correct", "seconds")
        lacking = [name for name in ("lr", "generators", "history", *counters) if name not in meta]
        if lacking:
            raise CheckpointError(f"{path} is of no training: it lacks {', '.join(lacking)}")
        history, generators = History.from_dict(meta["history"]), self.model.generators()
        if len(meta["generators"]) != len(generators):
            raise CheckpointError(
                f"{path} is of a network with {len(meta['generators'])} layers that draw random "
                f"numbers, not {len(generators)}"
            )
        parts = {
            owner: {k.removeprefix(owner): v for k, v in arrays.items() if k.startswith(owner)}
            for owner in ("model.", "optimizer.")
        }
        check_arrays(f"the optimizer in {path}", parts["optimizer."], self.optimizer.state())
        self.model.load_state(parts["model."])
        self.optimizer.load_state(parts["optimizer."])
        self.optimizer.lr = meta["lr"]
        for generator, state in zip(generators, meta["generators"], strict=True):
            generator.bit_generator.state = state
        self.history = history
        for name in counters:
            setattr(self, name, meta[name])


def load_model(model: Layer, path: str | Path) -> dict[str, Any]:
    """Copy the parameters of a checkpoint that `fit` wrote into the model; returns its description.

    raises CheckpointError where it is damaged or of another network
    """
    arrays, meta = load_checkpoint(path)
    prefix = "model."
    model.load_state({k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
    return meta


def _step_of(
    model: Layer,
    loss: SoftmaxCrossEntropy,
    optimizer: Optimizer,
    batches: Batches,
    clip_norm: float | None,
) -> Callable[[np.ndarray, np.ndarray], tuple[float, int]]:
    """A function that takes a step with images and labels of one of these batches; returns the
    loss, and how many were right.

    It may be recorded if nothing in it is decided or computed by Python anew at each step: layers,
    losses and optimizers of others may do that, and clipping asks whether the norm is too large.
    """
    ops = get_backend(model.backend)
    factor, offset = ops.to_device(batches.factor), ops.to_device(batches.offset)

    def step(images: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
        x = ops.normalised(images, factor, offset)
        value, logits = _train_step(model, loss, optimizer, x, labels, clip_norm)
        return value, ops.count_correct(logits, labels)

    ours = all(
        type(p).__module__.startswith("scratchnet.") for p in (*model.and_parts(), optimizer)
    )
    if ours and type(loss) is SoftmaxCrossEntropy and clip_norm is None:
        return ops.recorded(step)
    return lambda images, labels: step(ops.to_device(images), ops.to_device(labels))


def _train_step(
    model: Layer,
    loss: SoftmaxCrossEntropy,
    optimizer: Optimizer,
    x: np.ndarray,
    labels: np.ndarray,
    clip_norm: float | None,
) -> tuple[float, np.ndarray]:
    """One step; returns the loss before it, and the logits.

    A loss that is not finite ends the step, if it is known: on a GPU it is a number to come.
    """
    logits = model.forward(x, training=True)
    value = loss.forward(logits, labels)
    if not isinstance(value, float) or math.isfinite(value):
        model.backward(loss.backward(), need_dx=False)
        if clip_norm is not None:
            clip_gradients(model.parameters(), clip_norm)
        optimizer.step()
    return value, logits


def _check_parts(
    model: Layer, optimizer: Optimizer, loss: SoftmaxCrossEntropy | None, **functions: Any
) -> None:
    """The model, its optimizer and what else is given are of their kinds, and fit together."""
    for name, part, kind in (("model", model, Layer), ("optimizer", optimizer, Optimizer)):
        if not isinstance(part, kind):
            raise TypeError(
                f"fit: {name} must be of the kind {kind.__name__}, got {type(part).__name__}"
            )
    if not (loss is None or hasattr(loss, "forward") and hasattr(loss, "backward")):
        raise TypeError(
            f"fit: loss must have forward and backward, as SoftmaxCrossEntropy has, got {loss!r}"
        )
    if (getattr(loss, "backend", model.backend) == "cuda") != (model.backend == "cuda"):
        raise ValueError(
            f"fit: the model is on {model.backend}, the loss on {loss.backend}: move it by "
            f"loss.to({model.backend!r})"
        )
    for name, function in functions.items():
        if not (function is None or callable(function)):
            raise TypeError(f"fit: {name} must be a function, got {function!r}")
    learned = {id(parameter) for parameter in model.parameters()}
    for parameter in optimizer.parameters:
        if id(parameter) not in learned:
            raise ValueError(f"fit: the optimizer has {parameter!r}, which is not of the model")


def _check_data(model: Layer, **splits: Split | None) -> None:
    """Each split fits the network; a label out of range is not left for the last batch to find."""
    for name, split in splits.items():
        if split is None:
            continue
        if not isinstance(split, Split):
            raise TypeError(f"fit: {name} must be a Split, got {type(split).__name__}")
        classes = model.output_shape(split.images.shape[1:])[-1]
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"fit: {name} labels must lie in 0..{classes - 1}, got {low if low < 0 else high}"
            )


def _bar(total: int, run: _Run, batch_size: int, train: Split) -> tqdm:
    steps_done = run.epoch * math.ceil(len(train.labels) / batch_size) + run.step
    return tqdm(
        total=total,
        initial=steps_done,
        # What 80 columns hold; images a second say more than steps a second.
        bar_format="{desc} |{bar}| {elapsed}<{remaining}{postfix}",
        dynamic_ncols=True,
        disable=None,  # silent where the output is no terminal
        leave=False,
    )


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that no step is cut in half; a second Ctrl-C does cut."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals reach the main thread only
        return

    def on_interrupt(signum, frame):
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
