"""The study's report: Markdown and figures, every number of it from `results.json`.

Sections that lack their runs are left out; nothing is filled in.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scratchnet.comparison import confused_pairs
from scratchnet.data import Dataset
from scratchnet.files import write_text
from scratchnet.models import OPERATORS
from scratchnet.progress import clock
from scratchnet.study.results import ROW_TITLES, THEIRS, Study, number, table
from scratchnet.study.runs import COMPACT, DATASETS, Row
from scratchnet.study.sizes import better_at_equal_size, claims, equal_sizes
from scratchnet.study.speed import speed, speed_answers

RAW = "Their run fed raw pixels of 0 to 255, ours pixels of 0 to 1"

# Why ours differs, and the run that shows it, where there is one.
REASONS = {
    "mnist/involution": ("Their network applied the softmax twice", "softmax-twice"),
    "cifar10/convolution": (RAW, "raw-pixels"),
    "cifar10/involution": (RAW, "raw-pixels"),
}

DEVICES = ("cpu", "cuda")
GUESS = 1e-3  # nats from log 10 within which a network only guesses


def write_study_report(
    rows: Sequence[Row], results: dict, folder: str | Path, data: dict[str, Dataset]
) -> Path:
    """Write `report.md` and its figures into the study's folder. Returns the report's path.

    data   the data sets that are at hand, for pictures of what the networks see
    """
    folder = Path(folder)
    study = Study(results)
    with clock("drawing the figures"):
        from scratchnet.study.figures import draw  # matplotlib takes long to import

        figures = draw(study, rows, folder, data)
    sections = [
        _heading(study),
        _answer(study),
        _table_1(study),
        _differences(study),
        _figures(figures, "networks", "{}: the networks, layer by layer, to one scale"),
        _figures(figures, "curves", "{}: accuracy and loss against epochs"),
        speed(study, figures),
        equal_sizes(study, figures),
        claims(study),
        _learned(study, figures),
        _settings(study),
    ]
    text = "\n\n".join("\n".join(lines) for lines in sections if lines)
    return write_text(folder / "report.md", text + "\n")


def _heading(study: Study) -> list[str]:
    lines = [
        "# Convolution and involution, written by the same hand",
        "",
        "A student report swapped convolution for involution in small networks, measured accuracy, "
        "parameters and training time, and left a question open: its convolution was an optimised "
        "library kernel and its involution was not. Here its study is run again, with both "
        "operators at the same level of optimisation.",
    ]
    if study.results["settings"].get("quick"):
        lines += ["", "**A quick run: a tenth of the images, two epochs. Not to be quoted.**"]
    if study.results["interrupted"]:
        lines += ["", "**Stopped before the end**: rows that were not finished are missing."]
    if study.results["settings"].get("jpeg"):
        lines += [
            "",
            "CIFAR-10 (JPEG) stands for JPEG copies (quality about 75) of the images of CIFAR-10: "
            "its accuracies are not those of CIFAR-10.",
        ]
    return lines


def _answer(study: Study) -> list[str]:
    told = [*speed_answers(study), *better_at_equal_size(study)]
    return ["## The answer", "", *told] if told else []


def _table_1(study: Study) -> list[str]:
    gpu = any("cuda" in of_row for of_row in study.rows.values())
    header = ["data set", "operator", "parameters", "accuracy, %", "theirs", "CPU, s", "theirs"]
    header += ["GPU: accuracy, %", "s", "theirs"] if gpu else ["GPU, s, theirs"]
    lines = []
    for dataset in DATASETS:
        for operator in (*OPERATORS, "attention"):
            row = f"{dataset}/{operator}"
            theirs = THEIRS.get(row, (None, None, None))
            seconds = {device: study.seconds(row, device) for device in DEVICES}
            cells = [study.title(dataset), ROW_TITLES[operator], number(study.parameters(row), ","),
                     study.accuracy(row), number(theirs[0], ".2f"),
                     seconds["cpu"], number(theirs[2], ".2f")]  # fmt: skip
            if gpu:
                cells += [study.accuracy(row, "cuda"), seconds["cuda"]]
            lines.append([*cells, number(theirs[1], ".2f")])
    seeds = max(len(study.outcomes(row)) for row in study.rows) if study.rows else 0
    return [
        "## Table 1, ours beside theirs",
        "",
        *table(header, lines, left=2),
        "",
        f"Accuracy on the test images in the last epoch; mean ± standard deviation over {seeds} "
        f"seed{'s' if seeds != 1 else ''}, where there is a ±. Training time is that of the "
        "training steps alone, without validation and compilation; theirs is of other machines. "
        "Window attention (Ramachandran et al. 2019, one head, relative positions) stands where "
        "the involution stands; the report describes it and did not train it.",
        *_guessers(study),
    ]


def _guessers(study: Study) -> list[str]:
    """Which runs of the table learned nothing."""
    told = []
    for dataset in DATASETS:
        for operator in (*OPERATORS, "attention"):
            row = f"{dataset}/{operator}"
            seeds = [
                str(outcome["experiment"]["seed"])
                for outcome in study.outcomes(row)
                if abs(outcome["history"][-1]["loss"] - math.log(10)) < GUESS
            ]
            if seeds:
                told.append(f"{study.row_title(row)} with seed {' and '.join(seeds)}")
    if not told:
        return []
    return [
        "",
        f"Some runs learned nothing: {'; '.join(told)}. Their loss stayed at log 10 = "
        f"{math.log(10):.4f}, that of guessing. A network of few channels can start with a ReLU "
        "that is closed for every pixel, and then no gradient comes through.",
    ]


def _differences(study: Study) -> list[str]:
    """Where ours and theirs are further apart than the spread, and why, by runs."""
    lines = ["### Where ours differ from theirs", ""]
    for row, (theirs, _, _) in THEIRS.items():
        values = [100 * outcome["accuracy"] for outcome in study.outcomes(row)]
        if not values:
            continue
        apart = statistics.fmean(values) - theirs
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        if abs(apart) > spread:
            why, shown = REASONS.get(row, ("No cause was found; theirs is a single run", ""))
            below = "; see below" if study.outcomes(f"{row}/{shown}") else ""
            lines.append(f"- {study.row_title(row)}: {apart:+.2f} points. {why}{below}.")
    lines += _softmax_twice(study) + _raw_pixels(study)
    return lines if len(lines) > 2 else []


def _softmax_twice(study: Study) -> list[str]:
    twice, once = "mnist/involution/softmax-twice", "mnist/involution"
    if not (study.outcomes(twice) and study.outcomes(once)):
        return []
    change = 100 * (study.mean(twice, "accuracy") - study.mean(once, "accuracy"))
    return [
        "",
        f"**Softmax twice.** With one softmax in the network and another in the loss, as the "
        f"report's MNIST involution network is written, it reaches {study.accuracy(twice)} % "
        f"instead of {study.accuracy(once)} %: {change:+.2f} points, and "
        f"{study.mean(twice, 'loss'):.2f} nats of loss instead of {study.mean(once, 'loss'):.2f}. "
        "(The library it was trained with may have seen the mistake and undone it.)",
    ]


def _raw_pixels(study: Study) -> list[str]:
    rows = [f"cifar10/{operator}" for operator in OPERATORS]
    if not all(study.outcomes(f"{row}/raw-pixels") for row in rows):
        return []
    lines = [
        [study.row_title(row), study.accuracy(row), study.accuracy(f"{row}/raw-pixels"),
         number(THEIRS[row][0], ".2f")]
        for row in rows
    ]  # fmt: skip
    header = ["", "pixels 0 to 1, %", "pixels 0 to 255, %", "theirs, 0 to 255"]
    return ["", "**Raw pixels.** The report's way of feeding CIFAR-10:", "", *table(header, lines)]


def _figures(figures: dict[str, str], kind: str, heading: str) -> list[str]:
    first = {"networks": 2, "curves": 5}[kind]  # the student report's numbers, one a data set
    numbers = {f"{kind}-{dataset}.png": first + i for i, dataset in enumerate(DATASETS)}
    drawn = [name for name in numbers if name in figures]
    if not drawn:
        return []
    told = " and ".join(str(numbers[name]) for name in drawn)
    told = told if len(drawn) < 3 else f"{first} to {first + len(drawn) - 1}"
    lines = ["## " + heading.format(f"Figure{'s' if len(drawn) > 1 else ''} {told}")]
    for name in drawn:
        lines += ["", f"![{figures[name]}]({name})"]
    if kind == "networks":
        lines += ["", "A block is what a layer puts out: its height and depth are the image's, its "
                  "width grows with the root of the channels. A bar of n values is as high as a "
                  "square image of n pixels. Layers with parameters are coloured."]  # fmt: skip
    else:
        lines += [
            "",
            "Means over the seeds. Training values are taken while the network learns and, on "
            "MNIST, with dropout on: they may lie below those of validation.",
        ]
    return lines


def _learned(study: Study, figures: dict[str, str]) -> list[str]:
    lines = ["## What an involution learns", ""]
    drawn = [name for name in figures if name.startswith("kernels-")]
    if drawn:
        lines += [
            "For each image the kernels that a trained network makes for it, a map for each group: "
            "at each pixel the sum over the kernel's K x K values, as Li et al. draw them, bright "
            "where it is large; one scale for each column. Beside them the 3 x 3 filters of the "
            "convolution network's first layer.",
            "",
        ]
    for name in drawn:
        lines += [f"![{figures[name]}]({name})", ""]
    rows = []
    for dataset in DATASETS:
        for network in (*OPERATORS, COMPACT):
            found = study.outcomes(f"{dataset}/{network}")
            if found:
                rows.append([study.title(dataset), ROW_TITLES[network], _confused(found[0])])
    if rows:
        lines += ["The pairs of classes that each confuses most, of the first seed:", ""]
        lines += table(["data set", "network", "true class → taken for (images)"], rows, left=3)
    return lines if len(lines) > 2 else []


def _confused(outcome: dict) -> str:
    classes, pairs = outcome["classes"], confused_pairs(np.array(outcome["confusion"]))
    return ", ".join(f"{classes[true]} → {classes[guess]} ({n})" for true, guess, n in pairs)


def _settings(study: Study) -> list[str]:
    settings, libraries = study.results["settings"], study.results["versions"]
    return [
        "## Settings",
        "",
        *_machines(study),
        "- " + ", ".join(f"{name} {version}" for name, version in libraries.items()),
        f"- Adam 1e-3 at a constant rate{_schedules(study)}; validation on the test images; seeds "
        "from 0 up",
        f"- made by `{settings.get('command', 'scratchnet report')}`",
        "",
        "Every number, epoch by epoch, is in [results.json](results.json).",
    ]


def _schedules(study: Study) -> str:
    """Epochs and batches by data set, of the networks that are the student report's."""
    told = ""
    for dataset in DATASETS:
        rows = [outcome for name in OPERATORS for outcome in study.outcomes(f"{dataset}/{name}")]
        if rows:
            asked = rows[0]["experiment"]
            told += f"; {asked['epochs']} epochs in batches of {asked['batch_size']} on "
            told += study.title(dataset)
    return told


def _machines(study: Study) -> list[str]:
    """Where most was trained and timed, and what elsewhere, where a study went on elsewhere."""
    done: dict[str, list[str]] = {}

    def note(machine: dict, what: str) -> None:
        told = "{threads} of {cores} threads of {cpu}, {platform}".format(**machine)
        told += f", {machine['gpu']}" if "gpu" in machine else ""
        done.setdefault(told, []).append(what)

    for row, of_row in study.rows.items():
        for outcome in itertools.chain.from_iterable(of_row.values()):
            note(outcome["machine"], study.row_title(row))
    for profile in (study.results["profiles"] or {}).values():
        note(profile["machine"], "the times of layers")
    if not done:
        return []
    usual, *others = sorted(done, key=lambda told: -len(done[told]))
    elsewhere = [f"- {told}: {'; '.join(dict.fromkeys(done[told]))}" for told in others]
    return [f"- {usual}", *elsewhere]
