"""The study's report: Markdown and figures, every number of it from `results.json`.

Sections that lack their runs say which; nothing is filled in.
"""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from scratchnet.data import Dataset
from scratchnet.experiment import PIXELS, load_trained
from scratchnet.history import Epoch, History, write_text
from scratchnet.layers import Conv2D, Involution2D, Residual, Sequential
from scratchnet.models import INPUT_SHAPES, NETWORKS, OPERATORS
from scratchnet.progress import clock
from scratchnet.study import COMPACT, DATASETS, Row

# The student report's Table 1: accuracy in per cent, seconds of training on its GPU and its CPU.
THEIRS = {
    "mnist/convolution": (98.97, 65.26, 502.75),
    "mnist/involution": (88.82, 73.35, 323.23),
    "fashion-mnist/convolution": (91.91, 86.23, 982.03),
    "fashion-mnist/involution": (82.34, 479.08, 621.97),
    "cifar10/convolution": (64.78, 142.44, 1077.86),
    "cifar10/involution": (31.10, 203.27, 922.53),
}
RAW = "Their run fed raw pixels of 0 to 255, ours pixels of 0 to 1; see below for both."
REASONS = {
    "mnist/involution": "Their network applied the softmax twice; see below what that changes.",
    "cifar10/convolution": RAW,
    "cifar10/involution": RAW,
}
DEVICES = ("cpu", "cuda")
GOALS = {"mnist": 0.995, "fashion-mnist": 0.93, "cifar10": 0.85}
ROW_TITLES = {
    "convolution": "convolution",
    "involution": "involution",
    "attention": "window attention",
    "small-convolution": "convolution, as small as the involution",
    "wide-involution": "involution, as large as the convolution",
    COMPACT: "compact involution network",
}


class Study:
    """The results, and how to ask them."""

    def __init__(self, results: dict):
        self.results = results
        self.rows = results["rows"]

    def outcomes(self, row: str, backend: str | None = None) -> list[dict]:
        """The runs of a row on a backend, by default on the first that has it; [] where none is."""
        of_row = self.rows.get(row, {})
        return of_row.get(backend or next(iter(of_row), ""), [])

    def mean(self, row: str, number: str, backend: str | None = None) -> float | None:
        values = [outcome[number] for outcome in self.outcomes(row, backend)]
        return statistics.fmean(values) if values else None

    def accuracy(self, row: str) -> str:
        """Mean and standard deviation over the seeds, in per cent."""
        values = [100 * outcome["accuracy"] for outcome in self.outcomes(row)]
        if len(values) < 2:
            return f"{values[0]:.2f}" if values else "–"
        return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"

    def parameters(self, row: str) -> int | None:
        found = self.outcomes(row)
        return found[0]["parameters"] if found else None

    def title(self, dataset: str) -> str:
        names = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
        copies = dataset == "cifar10" and self.results["settings"].get("jpeg")
        return names[dataset] + (" (JPEG)" if copies else "")


def write_study_report(
    rows: Sequence[Row], results: dict, folder: str | Path, data: dict[str, Dataset]
) -> Path:
    """Write `report.md` and its figures into the study's folder. Returns the report's path.

    data   the data sets that are at hand, for pictures of what the networks see
    """
    folder = Path(folder)
    study = Study(results)
    with clock("drawing the figures"):
        figures = _draw(study, rows, folder, data)
    sections = [
        _heading(study),
        _answer(study),
        _table_1(study),
        _differences(study),
        _figures(figures, "networks", "Figures {}: the networks, layer by layer, to one scale"),
        _figures(figures, "curves", "Figures {}: accuracy and loss against epochs"),
        _speed(study, figures),
        _equal_sizes(study, figures),
        _claims(study),
        _learned(study, figures),
        _settings(study),
    ]
    text = "\n\n".join("\n".join(lines) for lines in sections if lines)
    return write_text(folder / "report.md", text + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A Markdown table, the first `left` columns aligned left."""
    marks = ["---"] * left + ["---:"] * (len(header) - left)
    return ["| " + " | ".join(cells) + " |" for cells in (header, marks, *rows)]


def number(value: float | None, form: str = ",.1f") -> str:
    return "–" if value is None else format(value, form)


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


def _table_1(study: Study) -> list[str]:
    gpu = any("cuda" in of_row for of_row in study.rows.values())
    header = ["data set", "operator", "parameters", "accuracy, %", "theirs", "CPU, s", "theirs"]
    header += ["GPU, s", "theirs"] if gpu else ["GPU, s, theirs"]
    lines = []
    for dataset in DATASETS:
        for operator in (*OPERATORS, "attention"):
            row = f"{dataset}/{operator}"
            theirs = THEIRS.get(row, (None, None, None))
            seconds = {device: study.mean(row, "training_seconds", device) for device in DEVICES}
            cells = [study.title(dataset), ROW_TITLES[operator], number(study.parameters(row), ","),
                     study.accuracy(row), number(theirs[0], ".2f"),
                     number(seconds["cpu"]), number(theirs[2], ".2f")]  # fmt: skip
            if gpu:
                cells.append(number(seconds["cuda"]))
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
            why = REASONS.get(row, "No cause was found; theirs is a single run.")
            lines.append(f"- {_row_title(study, row)}: {apart:+.2f} points. {why}")
    lines += _softmax_twice(study) + _raw_pixels(study)
    return lines


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
        [_row_title(study, row), study.accuracy(row), study.accuracy(f"{row}/raw-pixels"),
         number(THEIRS[row][0], ".2f")]
        for row in rows
    ]  # fmt: skip
    header = ["", "pixels 0 to 1, %", "pixels 0 to 255, %", "theirs, 0 to 255"]
    return ["", "**Raw pixels.** The report's way of feeding CIFAR-10:", "", *table(header, lines)]


def _speed(study: Study, figures: dict[str, str]) -> list[str]:
    profiles = study.results["profiles"]
    if not profiles:
        return []
    lines = ["## The open question: which operator is faster at equal optimisation?", ""]
    for backend, of_backend in profiles.items():
        lines += _speed_of_networks(study, backend, of_backend)
        lines += _speed_of_layers(backend, of_backend)
    if "speed.png" in figures:
        lines += ["", f"![{figures['speed.png']}](speed.png)"]
    for backend, of_backend in profiles.items():
        lines += ["", "<details>", f"<summary>Every layer, {backend}</summary>", ""]
        for name, timed in of_backend["networks"].items():
            lines += _layer_table(_row_title(study, name), timed)
        lines += ["</details>"]
    return lines


def _speed_of_networks(study: Study, backend: str, of_backend: dict) -> list[str]:
    limits = of_backend["limits"]
    rows = []
    for name, timed in of_backend["networks"].items():
        total = totals(timed["layers"])
        rate = f"{1e3 * timed['batch'] / timed['ms']:,.0f}"
        rows.append([_row_title(study, name), f"{timed['ms']:.2f}", rate, *_cost_cells(total)])
    header = ["network", "ms a step", "images/s", *COSTS]
    return [
        f"### A training step of each network ({backend})",
        "",
        *table(header, rows),
        "",
        f"Forward, backward and Adam at the report's batch sizes. The machine copies at "
        f"{limits['bandwidth'] / 1e9:.0f} GB/s and multiplies large matrices at "
        f"{2e-9 * limits['rate']:.0f} GFLOP/s. MB are the bytes that the layers must read and "
        "write at least; a rate above the copy's means that they stayed in a cache, one above the "
        "product's that multiplications were saved (Winograd).",
        "",
    ]


def _speed_of_layers(backend: str, of_backend: dict) -> list[str]:
    rows = []
    for layer in of_backend["single"]:
        H, W, C = layer["shape"]
        ways = [f"{layer[way]['ms']:.2f}" for way in ("forward", "backward")]
        what = [f"{H} × {W} × {C}", layer["name"], f"{layer['parameters']:,}"]
        rows.append([*what, *ways, *_cost_cells(totals([layer]))])
    header = ["image", "layer", "parameters", "forward, ms", "backward, ms", *COSTS]
    return [
        f"### One layer in place of another ({backend})",
        "",
        *table(header, rows, left=2),
        "",
        f"Each layer takes and gives the same image, batch {of_backend['single'][0]['batch']}; "
        "groups of 16 channels, reduction 4. Attention has had less tuning than the other two: "
        "its times are no measure of what it could do.",
    ]


COSTS = ("million multiply-adds", "MB", "GFLOP/s", "GB/s", "ps a multiply-add")


def _cost_cells(total: dict[str, float]) -> list[str]:
    """The cells under COSTS."""
    ms, multiply_adds, bytes_ = total["ms"], total["multiply_adds"], total["bytes"]
    return [
        f"{multiply_adds / 1e6:,.0f}",
        f"{bytes_ / 1e6:,.1f}",
        f"{2 * multiply_adds / ms / 1e6:,.0f}",
        f"{bytes_ / ms / 1e6:,.1f}",
        f"{1e9 * ms / multiply_adds:,.1f}",
    ]


def _layer_table(title: str, timed: dict) -> list[str]:
    rows = []
    for layer in timed["layers"]:
        cells = [layer["layer"]]
        for way in (layer["forward"], layer["backward"]):
            counted = way["multiply_adds"] > 0
            cells += [
                f"{way['ms']:.3f}",
                f"{way['multiply_adds'] / 1e6:,.1f}" if counted else "",
                f"{way['gflops']:.0f}" if counted else "",
                f"{way['gbytes']:.1f}" if way["bytes"] else "",
            ]
        rows.append([*cells, f"{layer['share']:.1%}"])
    ways = [f"{way}, {what}" for way in ("forward", "backward")
            for what in ("ms", "M multiply-adds", "GFLOP/s", "GB/s")]  # fmt: skip
    return [f"**{title}**, batch {timed['batch']}", "", *table(["layer", *ways, "share"], rows), ""]


def totals(layers: Sequence[dict]) -> dict[str, float]:
    """Milliseconds, multiply-adds and bytes of layers, forward and backward."""
    ways = [layer[way] for layer in layers for way in ("forward", "backward")]
    return {name: sum(way[name] for way in ways) for name in ("ms", "multiply_adds", "bytes")}


PAIRS = (("involution", "small-convolution"), ("wide-involution", "convolution"))


def _equal_sizes(study: Study, figures: dict[str, str]) -> list[str]:
    rows = []
    for dataset in DATASETS:
        for pair in PAIRS:
            if all(study.outcomes(f"{dataset}/{network}") for network in pair):
                rows += [_size_cells(study, dataset, network) for network in pair]
    if not rows:
        return []
    header = ["data set", "network", "parameters", "multiply-adds", "accuracy, %", "training, s",
              "images/s"]  # fmt: skip
    lines = [
        "## At equal parameters, and equal multiply-adds",
        "",
        "The twins differ too much in size to compare operators by them. So the convolution "
        "network was given as few channels as make it as small as the involution network, and the "
        "involution network the convolution network's channels, by a 1 x 1 convolution before each "
        "involution. Pairs agree in both counts to within an eighth.",
        "",
        *table(header, rows, left=2),
    ]
    if "sizes.png" in figures:
        lines += ["", f"![{figures['sizes.png']}](sizes.png)"]
    return lines


def _size_cells(study: Study, dataset: str, network: str) -> list[str]:
    row = f"{dataset}/{network}"
    return [
        study.title(dataset),
        ROW_TITLES[network],
        f"{study.parameters(row):,}",
        f"{study.outcomes(row)[0]['multiply_adds']:,}",
        study.accuracy(row),
        number(study.mean(row, "training_seconds")),
        number(study.mean(row, "images_per_second"), ",.0f"),
    ]


def _claims(study: Study) -> list[str]:
    lines = ["## The report's other claims", ""]
    ratios = []
    for dataset in DATASETS:
        one, other = (study.parameters(f"{dataset}/{operator}") for operator in OPERATORS)
        if one and other:
            ratios.append(f"{one / other:.1f} on {study.title(dataset)}")
    if ratios:
        told = ", ".join(ratios)
        lines += [f'**"Up to 65 times" fewer parameters.** The factor is {told}.', ""]
    return lines + _gaps(study) + _compact(study)


def _gaps(study: Study) -> list[str]:
    networks = ("convolution", "involution", "small-convolution", "wide-involution")
    rows = []
    for dataset in DATASETS:
        found = [gap(study.outcomes(f"{dataset}/{network}")) for network in networks]
        if found[0] is not None and found[1] is not None:
            rows.append([study.title(dataset), *(number(value, "+.2f") for value in found)])
    if not rows:
        return []
    return [
        "**A smaller gap between training and validation accuracy.** Training minus validation "
        "accuracy in the last epoch, in points; training accuracy is taken while the network "
        "learns and, on MNIST, with dropout on:",
        "",
        *table(["data set", *(ROW_TITLES[network] for network in networks)], rows),
        "",
        _gap_sentence(study),
        "",
    ]


def gap(outcomes: Sequence[dict]) -> float | None:
    """Training minus validation accuracy in the last epoch, in points, the mean over seeds."""
    if not outcomes:
        return None
    last = [outcome["history"][-1] for outcome in outcomes]
    return statistics.fmean(100 * (epoch["accuracy"] - epoch["val_accuracy"]) for epoch in last)


def _gap_sentence(study: Study) -> str:
    smaller = [
        study.title(dataset)
        for dataset in DATASETS
        if all(study.outcomes(f"{dataset}/{name}") for name in OPERATORS)
        and gap(study.outcomes(f"{dataset}/involution"))
        < gap(study.outcomes(f"{dataset}/convolution"))
    ]
    told = f"The involution's gap is the smaller one on {' and '.join(smaller) or 'no data set'}."
    small = [f"{dataset}/small-convolution" for dataset in DATASETS]
    if all(map(study.outcomes, small)):
        largest = max(gap(study.outcomes(row)) for row in small)
        told += (
            f" So is that of a convolution of its size, which is {largest:+.2f} points at most: a "
            "small gap comes with few parameters."
            if largest < 1
            else f" A convolution of its size has a gap of up to {largest:+.2f} points."
        )
    return told


def _compact(study: Study) -> list[str]:
    rows = []
    for dataset in DATASETS:
        row = f"{dataset}/{COMPACT}"
        if not study.outcomes(row):
            continue
        outcome = study.outcomes(row)[0]
        machine = outcome["machine"]
        rows.append(
            [study.title(dataset), f"{outcome['parameters']:,}",
             number(study.parameters(f"{dataset}/convolution"), ","), study.accuracy(row),
             study.accuracy(f"{dataset}/convolution"),
             number(THEIRS[f"{dataset}/convolution"][0], ".2f"), f"{100 * GOALS[dataset]:.1f}",
             str(outcome["epochs"]), f"{outcome['training_seconds'] / 60:.1f}",
             str(machine["threads"])]
        )  # fmt: skip
    if not rows:
        return []
    header = ["data set", "parameters", "the convolution's", "accuracy, %", "our convolution",
              "the report's", "our goal", "epochs", "training, min", "threads"]  # fmt: skip
    return [
        '**"A more refined design could bridge the gap."** A compact network on RedNet\'s pattern '
        "(`scratchnet.models.compact_involution`): stem convolutions, then bottlenecks of 1 x 1 "
        "convolutions around involutions, with batch norm:",
        "",
        *table(header, rows),
        "",
        "One seed, AdamW along a cosine, shifted images, on Fashion-MNIST and CIFAR-10 also "
        "mirrored.",
    ]


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


def _confused(outcome: dict, pairs: int = 3) -> str:
    counts = np.array(outcome["confusion"])
    np.fill_diagonal(counts, 0)
    worst = [np.unravel_index(i, counts.shape) for i in np.argsort(-counts, axis=None)[:pairs]]
    classes = outcome["classes"]
    return ", ".join(
        f"{classes[t]} → {classes[g]} ({counts[t, g]})" for t, g in worst if counts[t, g]
    )


def _settings(study: Study) -> list[str]:
    here, settings = study.results["machine"], study.results["settings"]
    libraries = study.results["versions"]
    return [
        "## Settings",
        "",
        f"- {here['threads']} of {here['cores']} threads of {here['cpu']}, {here['platform']}",
        "- " + ", ".join(f"{name} {version}" for name, version in libraries.items()),
        "- Adam 1e-3 at a constant rate; batches of 128, on CIFAR-10 of 256; 15 epochs on MNIST, "
        "10 elsewhere; validation on the test images; seeds from 0 up",
        f"- made by `{settings.get('command', 'scratchnet report')}`",
        "",
        "Every number, epoch by epoch, is in [results.json](results.json).",
    ]


def _row_title(study: Study, row: str) -> str:
    dataset, network = row.split("/")[:2]
    return f"{study.title(dataset)}, {ROW_TITLES[network]}"


def _answer(study: Study) -> list[str]:
    told = [*_fastest_network(study), *_time_of_a_multiply_add(study), *_fastest_layer(study),
            *_better_at_equal_size(study)]  # fmt: skip
    return ["## The answer", "", *told] if told else []


def _fastest_network(study: Study) -> Iterator[str]:
    for backend, of_backend in (study.results["profiles"] or {}).items():
        ratios = []
        for dataset in DATASETS:
            convolution, involution = (
                of_backend["networks"][f"{dataset}/{op}"] for op in OPERATORS
            )
            ratios.append((convolution["ms"] / involution["ms"], study.title(dataset)))
        told = ", ".join(f"{ratio:.1f} times on {title}" for ratio, title in ratios)
        yield (
            f"- **The network** ({backend}). A step of the involution network is faster than one "
            f"of the convolution network {told}."
            if all(ratio > 1 for ratio, _ in ratios)
            else f"- **The network** ({backend}). Convolution step over involution step: {told}."
        )


def _time_of_a_multiply_add(study: Study) -> Iterator[str]:
    for backend, of_backend in (study.results["profiles"] or {}).items():
        ratios = []
        for dataset in DATASETS:
            times = []
            for operator in OPERATORS:
                layers = of_backend["networks"][f"{dataset}/{operator}"]["layers"]
                total = totals([layer for layer in layers if layer["operator"] == operator])
                times.append(total["ms"] / total["multiply_adds"])
            ratios.append(times[1] / times[0])
        yield (
            f"- **The multiply-add** ({backend}). In these networks one multiply-add of an "
            f"involution takes {min(ratios):.1f} to {max(ratios):.1f} times as long as one of a "
            "convolution: the involution network is faster because it does less, not because it "
            "does it faster."
        )


def _fastest_layer(study: Study) -> Iterator[str]:
    for backend, of_backend in (study.results["profiles"] or {}).items():
        ms = {
            (tuple(layer["shape"]), layer["name"]): totals([layer])["ms"]
            for layer in of_backend["single"]
        }
        told = []
        for shape in dict.fromkeys(shape for shape, _ in ms):
            ratio = ms[shape, "convolution 3 x 3"] / ms[shape, "involution 3 x 3"]
            told.append(f"{ratio:.2f} at {shape[2]}")
        yield (
            f"- **The layer** ({backend}). Time of a 3 x 3 convolution over that of a 3 x 3 "
            f"involution on the same image, by channels: {', '.join(told)}. Above 1 the involution "
            "is the faster one."
        )


def _better_at_equal_size(study: Study) -> Iterator[str]:
    for involution, convolution in PAIRS:
        told = []
        for dataset in DATASETS:
            pair = [f"{dataset}/{network}" for network in (involution, convolution)]
            if all(map(study.outcomes, pair)):
                one, other = (study.mean(row, "accuracy") for row in pair)
                fast, slow = (study.mean(row, "images_per_second") for row in pair)
                told.append(
                    f"{100 * (one - other):+.1f} points and {fast / slow:.2f} times the images/s "
                    f"on {study.title(dataset)}"
                )
        if told:
            size = "involution" if convolution.startswith("small") else "convolution"
            yield (
                f"- **At the {size} network's parameters and multiply-adds**, the involution has, "
                f"against the convolution, {'; '.join(told)}."
            )


def _figures(figures: dict[str, str], kind: str, heading: str) -> list[str]:
    drawn = [name for name in figures if name.startswith(f"{kind}-")]
    if not drawn:
        return []
    first = {"networks": 2, "curves": 5}[kind]
    lines = ["## " + heading.format(f"{first} to {first + 2}")]
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


def _draw(
    study: Study, rows: Sequence[Row], folder: Path, data: dict[str, Dataset]
) -> dict[str, str]:
    """The figures that can be drawn, by file name, each with what it shows in words."""
    from scratchnet import plots  # matplotlib takes longer to import than all the rest

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
        if _draw_kernels(study, rows, folder, dataset, of_dataset, name):
            drawn[name] = f"Kernels that involutions make for images of {study.title(dataset)}"
    return drawn


def mean_history(outcomes: Sequence[dict]) -> History:
    """One history whose epochs are the means of those of each seed."""
    epochs = zip(*(outcome["history"] for outcome in outcomes), strict=False)
    names = [name for name in Epoch.__dataclass_fields__ if name != "epoch"]
    return History(
        [
            Epoch(epoch=i, **{name: statistics.fmean(e[name] for e in same) for name in names})
            for i, same in enumerate(epochs, 1)
        ]
    )


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
        steps[_row_title(study, name)] = kinds
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


SAMPLES = 4  # images whose kernels are drawn


def _draw_kernels(
    study: Study, rows: Sequence[Row], folder: Path, dataset: str, data: Dataset, name: str
) -> bool:
    """Heat maps of the trained involutions' kernels, and the filters of the convolution."""
    from scratchnet import plots

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
            maps[ROW_TITLES[network]] = kernel_sums(model, normalised(images, experiment.pixels))
    convolution = trained["convolution"][1].layers[0]
    assert isinstance(convolution, Conv2D)
    plots.plot_kernels(images, maps, convolution.weight.value, folder / name)
    return True


def normalised(images: np.ndarray, pixels: str) -> np.ndarray:
    """uint8 images as the network of an experiment with those pixels sees them, in float32."""
    how = {"mean": 0.0, "std": 1.0} | PIXELS[pixels]
    return ((images * how["scale"] - how["mean"]) / how["std"]).astype(np.float32)


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
