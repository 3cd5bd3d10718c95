"""Figures: curves, confusion matrices, predictions, samples, and networks drawn to scale.

Colours are Okabe and Ito's, which colour-blind readers tell apart; markers and dashes tell the
same in grey. Every function writes one PNG and returns its path.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter
from PIL import Image

from scratchnet.data import Split
from scratchnet.files import replacing
from scratchnet.history import History
from scratchnet.layers import (
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Involution2D,
    Layer,
    MaxPool2D,
    ReLU,
    Sequential,
)
from scratchnet.models.summary import trainable_parameters
from scratchnet.training import confusion_matrix

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLOURS = {"convolution": BLUE, "involution": VERMILLION}
MARKERS = {BLUE: "o", VERMILLION: "s", GREEN: "^", PURPLE: "D"}
SIX_COLOURS = (*MARKERS, "#E69F00", "#56B4E9")
SIX_MARKERS = (*MARKERS.values(), "v", "P")
GREY = "#6E6E6E"
LARGEST = 150_000  # bytes of a PNG that a repository should hold
DPI = 110


def plot_histories(histories: Mapping[str, History], path: str | Path, title: str = "") -> Path:
    """Accuracy and loss against epochs, one colour a history; training dashed, validation solid.

    histories   by label; "convolution" and "involution" have colours of their own
    raises      ValueError where no history has an epoch
    """
    histories = {label: history for label, history in histories.items() if history.epochs}
    if not histories:
        raise ValueError("plot_histories: there is no epoch to draw")
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    axes = figure.subplots(1, 2)
    for axis, quantity in zip(axes, ("accuracy", "loss"), strict=True):
        for colour, history in zip(_colours(histories), histories.values(), strict=True):
            _plot_quantity(axis, history, quantity, colour)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _light_grid(axis)
    axes[0].set_ylabel("accuracy")
    axes[0].yaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g}%")
    axes[1].set_ylabel("cross-entropy (nats)")
    axes[1].set_ylim(bottom=0)
    entries = [
        Line2D([], [], color=colour, marker=MARKERS[colour], markersize=6, label=label)
        for colour, label in zip(_colours(histories), histories, strict=True)
        if label
    ]
    entries.append(Line2D([], [], color="black", linestyle="--", label="training"))
    if any(epoch.val_loss is not None for h in histories.values() for epoch in h.epochs):
        entries.append(Line2D([], [], color="black", label="validation"))
    figure.legend(handles=entries, loc="outside lower center", ncols=len(entries), frameon=False)
    if title:
        figure.suptitle(title, fontsize=12)
    return _save(figure, path)


def plot_speed(bars: Mapping[str, Mapping], path: str | Path) -> Path:
    """Where the time of a training step goes, and what a multiply-add costs.

    bars   "steps": by network, microseconds an image by kind of layer;
           "single": by layer, points of (channels, picoseconds a multiply-add)
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    kinds = {
        **COLOURS,
        "all other layers": "#BBBBBB",
        "loss and optimizer": "#666666",
    }
    hatches = dict(zip(kinds, ("", "///", "", "..."), strict=True))
    for row, (_, times) in enumerate(bars["steps"].items()):
        start = 0.0
        for kind, colour in kinds.items():
            if times.get(kind):
                left.barh(row, times[kind], 0.7, start, color=colour, hatch=hatches[kind],
                          edgecolor="white", linewidth=0.5)  # fmt: skip
                start += times[kind]
        left.text(start * 1.01, row, f" {start:.0f} µs", va="center", fontsize=9)
    left.set_yticks(range(len(bars["steps"])), bars["steps"])
    left.invert_yaxis()
    left.margins(x=0.12)
    left.set_xlabel("training step, µs an image")
    entries = [Patch(facecolor=colour, hatch=hatches[kind], edgecolor="white", label=kind)
               for kind, colour in kinds.items()]  # fmt: skip
    left.legend(handles=entries, frameon=False, fontsize=9, loc="upper right")
    for (colour, marker), (name, points) in zip(
        MARKERS.items(), bars["single"].items(), strict=False
    ):
        right.plot(*zip(*points, strict=True), color=colour, marker=marker, label=name)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter(lambda ps, _: f"{ps:g}")
    right.yaxis.set_minor_locator(NullLocator())
    right.set_xticks([C for C, _ in points], [str(C) for C, _ in points])
    right.set_xlabel("channels of the layer")
    right.set_ylabel("time of a multiply-add (ps)")
    right.legend(frameon=False, fontsize=9)
    for axis in (left, right):
        _light_grid(axis)
    return _save(figure, path)


def plot_sizes(points: Mapping[str, Sequence[tuple[str, int, float]]], path: str | Path) -> Path:
    """Accuracy against the number of parameters, a panel a data set.

    points   by data set: a network's label, its parameters, its accuracy (0 to 1)
    """
    labels = list(dict.fromkeys(label for of_one in points.values() for label, _, _ in of_one))
    styles = dict(zip(labels, zip(SIX_COLOURS, SIX_MARKERS, strict=True), strict=False))
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, len(points), squeeze=False)[0]
    for axis, (dataset, of_one) in zip(axes, points.items(), strict=True):
        for label, parameters, accuracy in of_one:
            colour, marker = styles[label]
            axis.plot(parameters, accuracy, marker, color=colour, markersize=9)
        axis.set_xscale("log")
        axis.set_title(dataset, fontsize=12)
        axis.set_xlabel("parameters")
        axis.yaxis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g}%")
        axis.margins(0.12)
        _light_grid(axis)
    axes[0].set_ylabel("accuracy on the test images")
    entries = [
        Line2D([], [], color=colour, marker=marker, markersize=8, linestyle="", label=label)
        for label, (colour, marker) in styles.items()
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=3, frameon=False)
    return _save(figure, path)


def plot_kernels(
    images: np.ndarray, maps: Mapping[str, np.ndarray], filters: np.ndarray, path: str | Path
) -> Path:
    """Heat maps of an involution's kernels over images, and beside them a convolution's filters.

    images    (N, H, W, C)         uint8
    maps      by label, (N, Ho, Wo, G) numbers, a column for each of the first four groups
    filters   (K, K, C, O)         drawn as the mean over C, each on its own scale
    """
    columns = [
        (textwrap.fill(label, 16) if g == 0 else "", g, sums[..., g])
        for label, sums in maps.items()
        for g in range(min(4, sums.shape[3]))
    ]
    N, count = len(images), len(columns) + 1
    figure = Figure(figsize=(1.5 * count + 3.2, 1.5 * N + 0.7))
    left, right = figure.add_gridspec(1, 2, width_ratios=(1.5 * count, 2.9), wspace=0.06)
    grid = left.subgridspec(N, count, hspace=0.06, wspace=0.06)
    for i, image in enumerate(images):
        axes = [_bare(figure.add_subplot(grid[i, column])) for column in range(count)]
        _draw_image(axes[0], image)
        for axis, (_, _, sums) in zip(axes[1:], columns, strict=True):
            low, high = np.percentile(sums, (1, 99))  # one pixel shall not darken the rest
            axis.imshow(sums[i], cmap="cividis", vmin=low, vmax=high)
        if i == 0:
            axes[0].set_title("image", fontsize=9)
            for axis, (words, g, _) in zip(axes[1:], columns, strict=True):
                axis.set_title(f"{words}\ngroup {g + 1}".lstrip(), fontsize=9)
    means = filters.mean(axis=2)  # (K, K, O)
    below = right.subgridspec(-(-means.shape[2] // 4), 4, hspace=0.15, wspace=0.15)
    for o in range(means.shape[2]):
        axis = _bare(figure.add_subplot(below[o // 4, o % 4]))
        axis.imshow(means[..., o], cmap="gray")
        if o == 0:
            axis.set_title("filters of the convolution", fontsize=9, loc="left")
    return _save(figure, path)


def _bare(axis: Axes) -> Axes:
    axis.set_axis_off()
    return axis


def plot_confusion(
    labels: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    classes: Sequence[str],
    path: str | Path,
) -> Path:
    """Confusion matrices side by side: of each true class, the share given to each class.

    labels        (N,)   true classes, indices into `classes`
    predictions   by label, each (N,)
    """
    figure = Figure(figsize=(1 + 5.4 * len(predictions), 6.2), layout="constrained")
    axes = figure.subplots(1, len(predictions), squeeze=False)[0]
    for axis, (label, predicted) in zip(axes, predictions.items(), strict=True):
        counts = confusion_matrix(labels, predicted, len(classes))
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        shown = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for true, guess in np.argwhere(shares > 0.005):
            share = shares[true, guess]
            axis.text(
                guess, true, f"{100 * share:.0f}",
                ha="center", va="center", fontsize=8, color="white" if share > 0.5 else "black",
            )  # fmt: skip
        slanted = max(map(len, classes)) > 2
        axis.set_xticks(
            range(len(classes)),
            classes,
            rotation=45 if slanted else 0,
            ha="right" if slanted else "center",
            rotation_mode="anchor" if slanted else None,
        )
        axis.set_yticks(range(len(classes)), classes)
        axis.tick_params(length=0)
        axis.set_xlabel("predicted")
        axis.set_title(f"{label}: {np.mean(predicted == labels):.2%} right", fontsize=12)
    axes[0].set_ylabel("true")
    bar = figure.colorbar(shown, ax=axes, shrink=0.75, aspect=30, pad=0.02)
    bar.set_label("per cent of the true class")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=None))
    return _save(figure, path)


def plot_predictions(
    data: Split,
    predictions: Mapping[str, np.ndarray],
    classes: Sequence[str],
    path: str | Path,
    seed: int = 0,
) -> Path:
    """Two rows of images drawn at random and one of images with an error, each with its labels.

    data          images (N, H, W, C) and their true labels (N,)
    predictions   by label, each (N,)
    """
    columns = 8
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data))
    wrong = np.any([predicted != data.labels for predicted in predictions.values()], axis=0)
    anyhow, erred = order[: 2 * columns], order[2 * columns :]
    erred = erred[wrong[erred]][:columns]
    rows = [("drawn at random", row) for row in (anyhow[:columns], anyhow[columns:])]
    rows.append(("a network errs", erred))
    rows = [(title, row) for title, row in rows if len(row)]
    figure = Figure(figsize=(12, 0.5 + 1.95 * len(rows)))
    figure.subplots_adjust(hspace=0.55, wspace=0.1)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, (title, row) in zip(grid, rows, strict=True):
        for axis in axes:
            axis.set_axis_off()
        axes[0].text(
            -0.12, 0.5, title, rotation=90, fontsize=9, color=GREY,
            ha="right", va="center", transform=axes[0].transAxes,
        )  # fmt: skip
        for axis, i in zip(axes, row, strict=False):
            _draw_image(axis, data.images[i])
            axis.set_title(classes[data.labels[i]], fontsize=10, pad=3)
            for line, (colour, predicted) in enumerate(
                zip(_colours(predictions), predictions.values(), strict=True)
            ):
                right = predicted[i] == data.labels[i]
                axis.text(
                    0.5, -0.04 - 0.145 * line, ("✓ " if right else "✗ ") + classes[predicted[i]],
                    color=colour, fontsize=9, fontweight="normal" if right else "bold",
                    ha="center", va="top", transform=axis.transAxes,
                )  # fmt: skip
    heading = "true label above each image; below, the label of " + " and ".join(
        f"{label} ({place})" if len(predictions) > 1 else label
        for label, place in zip(predictions, ("first line", "second line"), strict=False)
    )
    figure.suptitle(heading, fontsize=11, y=0.88 + 0.4 / figure.get_figheight())
    return _save(figure, path)


def plot_samples(
    data: Split, classes: Sequence[str], path: str | Path, columns: int = 10, seed: int = 0
) -> Path:
    """A sheet of samples: a row for each class, its images drawn at random."""
    rng = np.random.default_rng(seed)
    _, H, W, C = data.images.shape
    gap = 2
    sheet = np.full((len(classes) * (H + gap) - gap, columns * (W + gap) - gap, C), 255, np.uint8)
    for row in range(len(classes)):
        chosen = rng.permutation(np.flatnonzero(data.labels == row))[:columns]
        for column, i in enumerate(chosen):
            top, left = row * (H + gap), column * (W + gap)
            sheet[top : top + H, left : left + W] = data.images[i]
    figure = Figure(
        figsize=(8.6, 7.6 * sheet.shape[0] / sheet.shape[1] + 0.1), layout="constrained"
    )
    axis = figure.subplots()
    _draw_image(axis, sheet)
    axis.set_yticks(np.arange(len(classes)) * (H + gap) + H / 2, classes, fontsize=10)
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return _save(figure, path)


def plot_networks(
    networks: Mapping[str, Sequential], input_shape: tuple[int, int, int], path: str | Path
) -> Path:
    """Networks below each other, layer by layer, drawn to one scale.

    A block is what a layer puts out: its height and depth are the image's, in pixels; its width
    grows with the root of the channels. A row of n values is a bar sqrt(n) high, as high as a
    square image of n pixels. Layers that only act on each value share the block before them.

    input_shape   (H, W, C) of one image
    """
    drawings = {label: _blocks(network, input_shape) for label, network in networks.items()}
    columns = max(map(len, drawings.values()))
    pitch, words_below = 34, 21  # pixels from one block to the next; under a block
    heights = [max(b.height + 0.55 * b.depth for b in row) for row in drawings.values()]
    total_height = sum(height + words_below + 9 for height in heights)
    inches = 1.42 / pitch
    figure = Figure(figsize=(columns * pitch * inches, total_height * inches))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_xlim(0, columns * pitch)
    axis.set_ylim(-total_height, 0)
    axis.set_axis_off()
    top = 0.0
    rows = zip(_colours(drawings), drawings.items(), heights, strict=True)
    for colour, (label, blocks), height in rows:
        total = sum(block.parameters for block in blocks)
        axis.text(
            2, top - 2, f"{label}: {total:,} parameters",
            fontsize=12, va="top", color=colour, fontweight="bold",
        )  # fmt: skip
        ground = top - 9 - height
        for column, block in enumerate(blocks):
            centre = pitch * (column + 0.5)
            _draw_block(axis, block, centre, ground, colour if block.parameters else "#BBBBBB")
            axis.text(
                centre, ground - 2, block.words,
                fontsize=8.5, ha="center", va="top", linespacing=1.35,
            )  # fmt: skip
        top = ground - words_below
    return _save(figure, path)


class _Block:
    """What a layer puts out, and the words under it."""

    def __init__(self, name: str, shape: tuple[int, ...], parameters: int):
        self.names = [name]
        self.shape = shape
        self.parameters = parameters
        if len(shape) == 3:
            H, W, C = shape
            self.height, self.depth, self.width = H, 0.3 * W, 1.5 * C**0.5
        else:
            self.height, self.depth, self.width = shape[-1] ** 0.5, 0, 2

    @property
    def words(self) -> str:
        count = [f"{self.parameters:,} parameters"] if self.parameters else []
        return "\n".join([" × ".join(f"{n:,}" for n in self.shape), *self.names, *count])


def _blocks(network: Sequential, shape: tuple[int, ...]) -> list[_Block]:
    blocks = [_Block("input", shape, 0)]
    for layer in network.layers:
        shape = layer.output_shape(shape)
        if isinstance(layer, ReLU | Dropout):
            blocks[-1].names.append(f"+ {_short_name(layer)}")
        else:
            blocks.append(_Block(_short_name(layer), shape, trainable_parameters(layer)))
    return blocks


def _short_name(layer: Layer) -> str:
    match layer:
        case Conv2D():
            return f"convolution {layer.kernel_size} × {layer.kernel_size}"
        case Involution2D():
            return f"involution {layer.kernel_size} × {layer.kernel_size}"
        case MaxPool2D():
            return f"max pool {layer.size} × {layer.size}"
        case Dropout():
            return f"dropout {layer.rate}"
        case ReLU():
            return "ReLU"
        case Dense() | Flatten():
            return type(layer).__name__.lower()
    return textwrap.shorten(repr(layer), 20, placeholder=" …")


def _draw_block(axis: Axes, block: _Block, centre: float, ground: float, colour: str) -> None:
    """A cuboid in oblique projection, its front face standing on the ground."""
    dx, dy = block.depth, 0.55 * block.depth
    left = centre - (block.width + dx) / 2
    right, top = left + block.width, ground + block.height
    front = [(left, ground), (right, ground), (right, top), (left, top)]
    side = [(right, ground), (right + dx, ground + dy), (right + dx, top + dy), (right, top)]
    lid = [(left, top), (right, top), (right + dx, top + dy), (left + dx, top + dy)]
    for face, light in ((front, 0.35), (side, 0.0), (lid, 0.6)):
        shade = tuple(c + (1 - c) * light for c in to_rgb(colour))
        axis.add_patch(Polygon(face, facecolor=shade, edgecolor="white", linewidth=0.6))


def _plot_quantity(axis: Axes, history: History, quantity: str, colour: str) -> None:
    epochs = [epoch.epoch for epoch in history.epochs]
    trained = [getattr(epoch, quantity) for epoch in history.epochs]
    style = {"color": colour, "marker": MARKERS[colour], "markersize": 5, "linewidth": 1.6}
    axis.plot(epochs, trained, linestyle="--", markerfacecolor="white", **style)
    validated = [getattr(epoch, f"val_{quantity}") for epoch in history.epochs]
    if None not in validated:
        axis.plot(epochs, validated, **style)


def _light_grid(axis: Axes) -> None:
    axis.grid(color="#DDDDDD", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _colours(labels: Mapping[str, object]) -> list[str]:
    """A colour for each label: an operator's own, else the next that no operator has taken."""
    free = [colour for colour in MARKERS if colour not in [COLOURS.get(label) for label in labels]]
    others = [label for label in labels if label not in COLOURS]
    if len(others) > len(free):
        raise ValueError(f"plots: there are colours for {len(free)} such labels, got {others}")
    return [COLOURS[label] if label in COLOURS else free.pop(0) for label in labels]


def _draw_image(axis: Axes, image: np.ndarray) -> None:
    grey = image.shape[2] == 1
    axis.imshow(image[:, :, 0] if grey else image, cmap="gray" if grey else None, vmin=0, vmax=255,
                interpolation="nearest")  # fmt: skip


def _save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG; one that would be large gets a palette of 256 colours."""
    FigureCanvasAgg(figure)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    if written.tell() > LARGEST:
        full = Image.open(written).convert("RGB")
        written = io.BytesIO()
        full.quantize(256, dither=Image.Dither.NONE).save(written, format="png", optimize=True)
    with replacing(path) as file:
        file.write(written.getvalue())
    return Path(path)
