"""Convolution beside involution: train both, set their numbers side by side, write a report.

Under the report's folder lie `report.md`, its figures, `results.json` with every number, and a
sub-folder a network with its checkpoints (see `experiment`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scratchnet.data import Dataset
from scratchnet.experiment import (
    TRAININGS,
    Experiment,
    Outcome,
    check_writable,
    move_aside,
    previous_folder,
    run_experiment,
)
from scratchnet.files import alone_in, write_text
from scratchnet.history import Epoch, History
from scratchnet.layers import Layer
from scratchnet.machine import gpu_name, machine, versions
from scratchnet.models.summary import trainable_parameters
from scratchnet.progress import clock
from scratchnet.training import confusion_matrix

FIGURES = {
    "curves.png": "Accuracy and loss against epochs",
    "confusion.png": "Confusion matrices on the test images",
    "predictions.png": "Sample predictions",
    "networks.png": "The networks, layer by layer, to one scale",
}


def compare(
    experiments: Sequence[Experiment],
    data: Dataset,
    folder: str | Path,
    *,
    resume: bool = False,
) -> list[Outcome]:
    """Train each experiment, then write report, figures and results into the folder.

    Tells on standard output how it goes. Ctrl-C ends the training; the report is then of what was
    learned until there. Returns the outcomes, of which the last may be interrupted.

    experiments   of one data set, with different operators
    raises        what `run_experiment` raises
    """
    folder = Path(folder)
    check_writable(folder)
    with alone_in(folder):
        if not resume:
            previous = move_aside(folder, (*FIGURES, "results.json", "report.md"))
            if previous:
                say(f"the report that was here is kept in {previous}")
        outcomes = []
        for experiment in experiments:
            outcomes.append(train(experiment, data, folder / experiment.network, resume=resume))
            if outcomes[-1].history.interrupted:
                break
        write_report(outcomes, data, folder)
    return outcomes


def train(
    experiment: Experiment, data: Dataset, folder: str | Path, *, resume: bool = False
) -> Outcome:
    """`run_experiment`, telling each epoch on standard output."""
    count = trainable_parameters(experiment.build())
    say(f"{experiment.network}: {count:,} parameters, {experiment.epochs} epochs")
    told = []

    def tell(epoch: Epoch) -> None:
        told.append(epoch)
        say(_epoch_line(epoch, experiment.epochs))

    if not resume and (Path(folder) / "last.npz").exists():
        say(f"  the run that was here is kept in {previous_folder(Path(folder))}")
    outcome = run_experiment(experiment, data, folder, resume=resume, on_epoch=tell)
    if not told and not outcome.history.interrupted:
        say(f"  trained before, taken from {folder}")
    return outcome


def say(line: str) -> None:
    """Print a line at once, above a bar where there is one."""
    tqdm.write(line)
    # A pipe is otherwise written when its buffer is full, long after the line was true.
    print(end="", flush=True)


def results_table(
    histories: Mapping[str, History], networks: Mapping[str, Layer], *, markdown: bool = False
) -> str:
    """Accuracy, parameters and times of trained networks, one a row.

    histories, networks   by the same labels
    markdown              as a Markdown table, else aligned for a terminal
    """
    header = ("", "accuracy", "best", "parameters", "training", "compilation", "images/s")
    rows = [_row(label, histories[label], networks[label]) for label in histories]
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in (header, *rows)]
        lines.insert(1, "|---" + "|---:" * (len(header) - 1) + "|")
        return "\n".join(lines)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for first, *others in (header, *rows):
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def results(outcomes: Sequence[Outcome], data: Dataset) -> dict:
    """Every number of a comparison, ready for JSON."""
    first = outcomes[0].experiment
    shared = ("dataset", "seed", "epochs", "batch_size", "lr", "backend")
    return {
        **{name: getattr(first, name) for name in shared},
        "optimizer": TRAININGS[first.training],
        "pixels": first.pixels,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "interrupted": any(outcome.history.interrupted for outcome in outcomes),
        "versions": versions(),
        "machine": machine() | ({"gpu": gpu_name()} if first.backend == "cuda" else {}),
        "networks": {o.experiment.network: network_results(o, data) for o in outcomes},
    }


def write_report(outcomes: Sequence[Outcome], data: Dataset, folder: str | Path) -> Path:
    """Write report.md, its figures and results.json. Returns the path of report.md."""
    folder = Path(folder)
    numbers = results(outcomes, data)
    write_text(folder / "results.json", json.dumps(numbers, indent=2) + "\n")
    with clock("drawing the figures"):
        drawn = _draw(outcomes, data, folder)
    return write_text(folder / "report.md", _report(outcomes, data, numbers, drawn))


def _draw(outcomes: Sequence[Outcome], data: Dataset, folder: Path) -> list[str]:
    """The figures, by the names of FIGURES; without an epoch there are no curves."""
    from scratchnet import plots  # matplotlib takes longer to import than all the rest

    histories = {o.experiment.network: o.history for o in outcomes}
    networks = {o.experiment.network: o.network for o in outcomes}
    predictions = {o.experiment.network: o.predictions for o in outcomes}
    (folder / "curves.png").unlink(missing_ok=True)
    if any(history.epochs for history in histories.values()):
        plots.plot_histories(histories, folder / "curves.png")
    plots.plot_confusion(data.test.labels, predictions, data.classes, folder / "confusion.png")
    plots.plot_predictions(data.test, predictions, data.classes, folder / "predictions.png")
    plots.plot_networks(networks, data.test.images.shape[1:], folder / "networks.png")
    return [name for name in FIGURES if (folder / name).exists()]


def network_results(outcome: Outcome, data: Dataset) -> dict:
    """What came out of one training, ready for JSON."""
    history, network = outcome.history, outcome.network
    confusion = confusion_matrix(data.test.labels, outcome.predictions, len(data.classes))
    last = history.epochs[-1] if history.epochs else None
    return {
        "accuracy": last and last.val_accuracy,
        "loss": last and last.val_loss,
        "best_accuracy": history.best and history.best.val_accuracy,
        "best_epoch": history.best and history.best.epoch,
        "parameters": trainable_parameters(network),
        "multiply_adds": network.flops(data.train.images.shape[1:]),
        "epochs": len(history.epochs),
        "training_seconds": history.training_seconds,
        "validation_seconds": sum(epoch.val_seconds for epoch in history.epochs),
        "images_per_second": _images_per_second(history),
        "compile_seconds": history.compile_seconds,
        "confusion": confusion.tolist(),
        "history": [asdict(epoch) for epoch in history.epochs],
    }


def _row(label: str, history: History, network: Layer) -> tuple[str, ...]:
    parameters = f"{trainable_parameters(network):,}"
    compilation = f"{history.compile_seconds:.1f} s"
    if not history.epochs:
        return label, "-", "-", parameters, "-", compilation, "-"
    last, best = history.epochs[-1], history.best
    return (
        label,
        f"{last.accuracy if last.val_accuracy is None else last.val_accuracy:.2%}",
        "-" if best is None else f"{best.val_accuracy:.2%}",
        parameters,
        f"{history.training_seconds:.1f} s",
        compilation,
        f"{_images_per_second(history):,.0f}",
    )


def _images_per_second(history: History) -> float | None:
    """Over all epochs; None where there is none."""
    if not history.epochs:
        return None
    images = sum(epoch.images_per_second * epoch.seconds for epoch in history.epochs)
    return images / history.training_seconds


def _epoch_line(epoch: Epoch, epochs: int) -> str:
    number = str(epoch.epoch).rjust(len(str(epochs)))
    return (
        f"  epoch {number}/{epochs}  loss {epoch.loss:.4f}  accuracy {epoch.accuracy:7.2%}  "
        f"validation {epoch.val_accuracy:7.2%}  {epoch.seconds:6.1f} s"
    )


def _report(outcomes: Sequence[Outcome], data: Dataset, numbers: dict, drawn: list[str]) -> str:
    histories = {o.experiment.network: o.history for o in outcomes}
    networks = {o.experiment.network: o.network for o in outcomes}
    lines = [f"# {' and '.join(histories).capitalize()} on {numbers['dataset']}", ""]
    if numbers["interrupted"]:
        done = {label: len(history.epochs) for label, history in histories.items()}
        told = ", ".join(f"{label} after {n} of {numbers['epochs']}" for label, n in done.items())
        lines += [f"**Stopped before the end**: {told} whole epochs.", ""]
    lines += [_answer(numbers), "", results_table(histories, networks, markdown=True), ""]
    lines += [
        "Accuracy is that of the last epoch on the test images, best that of the best epoch. "
        "Training is the time of the training steps alone, without validation and compilation.",
        "",
    ]
    for name in drawn:
        lines += [f"## {FIGURES[name]}", "", f"![{FIGURES[name]}]({name})", ""]
        if name == "curves.png":
            lines += [
                "Training values are means over the epoch, taken while the network learns and its "
                "dropout is on: they may lie below those of validation.",
                "",
            ]
        if name == "confusion.png":
            lines += [_most_confused(outcome, data) for outcome in outcomes] + [""]
        if name == "networks.png":
            lines += [
                "A block is what a layer puts out: its height and depth are the image's, its width "
                "grows with the root of the channels. A bar of n values is as high as a square "
                "image of n pixels. Layers with parameters are coloured.",
                "",
            ]
    lines += _settings(numbers)
    return "\n".join(lines) + "\n"


def _settings(numbers: dict) -> list[str]:
    """What the numbers depend on, and how to get them again."""
    here = numbers["machine"]
    return [
        "## Settings",
        "",
        f"- {numbers['train_images']:,} training and {numbers['test_images']:,} test images, "
        f"pixels from {numbers['pixels']}",
        f"- {numbers['epochs']} epochs in batches of {numbers['batch_size']}, "
        f"{numbers['optimizer']} with learning rate {numbers['lr']:g}, seed {numbers['seed']}",
        f"- backend {numbers['backend']}, {here['threads']} of {here['cores']} threads of "
        f"{here['cpu']}, {here['platform']}, BLAS {here['blas']}"
        + (f", GPU {here['gpu']}" if "gpu" in here else ""),
        "- " + ", ".join(f"{name} {version}" for name, version in numbers["versions"].items()),
        "",
        "Every number is in [results.json](results.json), epoch by epoch.",
        "",
        "Once more:",
        "",
        f"    {_command(numbers)}",
    ]


def _command(numbers: dict) -> str:
    """What to type to get the same report, whatever the defaults will be then."""
    options = {
        "dataset": numbers["dataset"],
        "epochs": numbers["epochs"],
        "batch-size": numbers["batch_size"],
        "lr": numbers["lr"],
        "seed": numbers["seed"],
        "train-images": numbers["train_images"],
        "device": numbers["backend"],
        "threads": numbers["machine"]["threads"],
    }
    told = " ".join(f"--{name} {value}" for name, value in options.items())
    return f"python -m scratchnet compare {told}"


def _answer(numbers: dict) -> str:
    """The comparison in one sentence, or two."""
    told = [
        f"{operator} reaches {network['accuracy']:.2%} with {network['parameters']:,} parameters "
        f"in {network['training_seconds']:.1f} s of training"
        for operator, network in numbers["networks"].items()
        if network["accuracy"] is not None
    ]
    if not told:
        return "No epoch was finished."
    sentence = " and ".join(told)
    return f"{sentence[0].upper()}{sentence[1:]}.{_ratios(numbers['networks'])}"


def _ratios(networks: dict[str, dict]) -> str:
    """How many parameters and how much training time the second network saves, or costs."""
    if len(networks) != 2 or any(network["accuracy"] is None for network in networks.values()):
        return ""
    (first, one), (second, other) = networks.items()
    parameters = one["parameters"] / other["parameters"]
    speed = other["images_per_second"] / one["images_per_second"]
    return (
        f" {first.capitalize()} has {parameters:.1f} times the parameters of {second}, which "
        f"trains on {speed:.1f} times as many images a second."
    )


def confused_pairs(confusion: np.ndarray, pairs: int = 3) -> list[tuple[int, int, int]]:
    """The most frequent mistakes of a confusion matrix: true class, the guess, how often."""
    counts = confusion * (1 - np.eye(len(confusion), dtype=int))
    worst = [np.unravel_index(i, counts.shape) for i in np.argsort(-counts, axis=None)[:pairs]]
    return [(true, guess, counts[true, guess]) for true, guess in worst if counts[true, guess]]


def _most_confused(outcome: Outcome, data: Dataset) -> str:
    counts = confusion_matrix(data.test.labels, outcome.predictions, len(data.classes))
    told = [
        f"{data.classes[true]} taken for {data.classes[guess]} ({count:,} times)"
        for true, guess, count in confused_pairs(counts)
    ]
    return f"- {outcome.experiment.network}: {', '.join(told) or 'no image is taken for another'}"
