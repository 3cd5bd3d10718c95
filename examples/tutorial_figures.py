"""Draw the figures of tutorial.md, and bring the source that it shows up to date.

python examples/tutorial_figures.py                  every figure, into examples/figures/
python examples/tutorial_figures.py batchnorm pooling    only these
python examples/tutorial_figures.py --sources        rewrite the source shown in tutorial.md
"""

import argparse
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import patches
from matplotlib import pyplot as plt

import scratchnet as sn
from scratchnet import data
from scratchnet.backends import reference as ops

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "figures"
TUTORIAL = ROOT / "tutorial.md"

SHOWN = re.compile(r"(<!-- source: ([\w.]+) -->\n```py\n)(.*?)(```\n)", re.DOTALL)


def source_of(name: str) -> str:
    """The source of a function, method or class by its full name, without indentation."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        # What Numba compiled keeps its Python function in py_func.
        return textwrap.dedent(inspect.getsource(getattr(found, "py_func", found)))
    raise ModuleNotFoundError(name)


def with_sources(text: str) -> str:
    """The tutorial's text, each block after a `source:` comment replaced by that source."""
    return SHOWN.sub(lambda shown: shown[1] + source_of(shown[2]) + shown[4], text)


# Okabe and Ito's colours, told apart by readers of every kind of colour vision.
ORANGE, SKY, GREEN, BLUE, RED, PINK = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY, LIGHT = "#555555", "#E8E8E8"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "figure.dpi": 150,
    "savefig.dpi": 150,
}


def canvas(width: float, height: float) -> tuple[plt.Figure, plt.Axes]:
    """A drawing in inches without axes, the origin at the bottom left."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes, x, y, width, height, text="", color="white", edge="black", **text_options):
    """A rounded box with its text in the middle."""
    shape = patches.FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0,rounding_size=0.08", fc=color, ec=edge, lw=1.2
    )
    axes.add_patch(shape)
    middle = (x + width / 2, y + height / 2)
    axes.text(*middle, text, ha="center", va="center", **text_options)


def arrow(axes, start, end, color="black", style="-", width=1.6, **options):
    axes.annotate(
        "",
        end,
        start,
        arrowprops={
            "arrowstyle": "-|>,head_width=0.25,head_length=0.5",
            "color": color,
            "lw": width,
            "ls": style,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        | options,
    )


def grid(
    axes, x, y, values, cell, cmap="Greys", low=None, high=None, text=None, size=9, lines=GREY
):
    """A matrix as squares, its first row on top; (x, y) is the bottom left corner."""
    rows, columns = values.shape
    low = values.min() if low is None else low
    high = values.max() if high is None else high
    colors = plt.get_cmap(cmap)((values - low) / max(high - low, 1e-9))
    for i in range(rows):
        for j in range(columns):
            corner = (x + j * cell, y + (rows - 1 - i) * cell)
            edge = lines or colors[i, j]  # no line, but no seam either
            axes.add_patch(patches.Rectangle(corner, cell, cell, fc=colors[i, j], ec=edge, lw=0.6))
            if text is not None:
                dark = colors[i, j, :3].mean() < 0.5
                axes.text(
                    corner[0] + cell / 2,
                    corner[1] + cell / 2,
                    text[i][j],
                    ha="center",
                    va="center",
                    fontsize=size,
                    color="white" if dark else "black",
                )


def frame(axes, x, y, width, height, color, style="-", lw=2.5):
    """A rectangle drawn around something."""
    axes.add_patch(patches.Rectangle((x, y), width, height, fill=False, ec=color, lw=lw, ls=style))


def digit() -> np.ndarray:
    """A 3 of 14 x 14 pixels, made of three strokes, soft at the edges: values 0 to 1."""
    i, j = np.mgrid[0:14, 0:14]
    strokes = []
    for row in (4.0, 9.0):
        radius = np.hypot(i - row, j - 6.0)
        arc = np.clip(1.6 - np.abs(radius - 2.7), 0, 1)
        strokes.append(arc * (j > 4.6 - 0.4 * np.abs(i - row)))
    return np.clip(np.maximum(*strokes), 0, 1)


def forward_backward() -> plt.Figure:
    """Chapter 1: arrays flow forward, gradients flow back."""
    figure, axes = canvas(8.6, 3.1)
    names = ("Conv2D", "ReLU", "Dense", "loss")
    left = (1.25, 3.15, 5.05, 6.95)
    for x, name in zip(left, names, strict=True):
        box(axes, x, 1.25, 1.0, 0.8, name, LIGHT, weight="bold")
    forward = ("x", "h", "y", "logits", "L")
    back = ("dx", "dh", "dy", "dlogits", "1")
    starts = (0.35, *(x + 1.0 for x in left))
    ends = (*left, 8.3)
    for start, end, there, here in zip(starts, ends, forward, back, strict=True):
        arrow(axes, (start, 1.85), (end, 1.85), BLUE)
        arrow(axes, (end, 1.45), (start, 1.45), RED, "--")
        middle = (start + end) / 2
        axes.text(middle, 1.93, there, ha="center", va="bottom", color=BLUE, fontsize=11)
        axes.text(middle, 1.37, here, ha="center", va="top", color=RED, fontsize=11)
    kept = ("keeps x", "keeps y", "keeps y", "keeps the\nprobabilities")
    for x, what in zip(left, kept, strict=True):
        axes.text(x + 0.5, 2.2, what, ha="center", va="bottom", fontsize=9, color=GREY)
    for x in (left[0], left[2]):
        arrow(axes, (x + 0.5, 1.25), (x + 0.5, 0.65), RED, "--")
        axes.text(x + 0.5, 0.58, "dweight, dbias", ha="center", va="top", color=RED)
    axes.text(0.1, 2.85, "forward: arrays", color=BLUE, weight="bold", va="center")
    axes.text(8.5, 0.2, "backward: gradients", color=RED, weight="bold", va="center", ha="right")
    return figure


def softmax_gradient() -> plt.Figure:
    """Chapter 2: what was said minus what is true."""
    logits = np.array([[1.0, 2.5, 0.2, 1.6, -0.5]])
    _, p = ops.softmax_cross_entropy_forward(logits, np.array([3]))
    gradient = ops.softmax_cross_entropy_backward(1.0, p, np.array([3]))
    figure, all_axes = plt.subplots(1, 3, figsize=(8.6, 2.5), sharey=True, layout="constrained")
    parts = (
        ("probabilities p: what was said", p[0], BLUE, ""),
        ("target t: what is true", np.eye(5)[3], GREEN, "//"),
        ("gradient p - t, adds up to 0", gradient[0], RED, "xx"),
    )
    for axes, (title, values, color, hatch) in zip(all_axes, parts, strict=True):
        bars = axes.bar(range(5), values, color="white", edgecolor=color, hatch=hatch, lw=1.5)
        if not hatch:
            for bar in bars:
                bar.set_facecolor(color)
        for k, value in enumerate(values):
            above = value >= 0
            place = {"ha": "center", "va": "bottom" if above else "top"}
            axes.text(k, value + (0.03 if above else -0.03), f"{value:.2f}", fontsize=9, **place)
        axes.axhline(0, color="black", lw=0.8)
        axes.set(title=title, ylim=(-1.05, 1.25), xlabel="class", xticks=range(5))
    return figure


def finite_differences() -> plt.Figure:
    """Chapter 3: the error of a numeric derivative against its step, a V."""
    steps = 10.0 ** np.arange(-15, 0.01, 0.1)
    figure, axes = plt.subplots(figsize=(7.2, 3.9), layout="constrained")
    curves = (
        ("central, float64", np.float64, True, BLUE, "-", "o"),
        ("one-sided, float64", np.float64, False, ORANGE, "-", "s"),
        ("central, float32", np.float32, True, RED, "-", "^"),
    )
    for label, dtype, central, color, line, marker in curves:
        x, errors = dtype(1), []
        for h in steps:
            up, down = x + dtype(h), x - dtype(h) if central else x
            width = float(2 * h if central else h)
            slope = (float(np.sin(up)) - float(np.sin(down))) / width
            errors.append(max(abs(slope - np.cos(1.0)), 1e-13))
        axes.loglog(
            steps, errors, line, color=color, marker=marker, markevery=10, ms=5, lw=1.2, label=label
        )
    best = np.cbrt(np.finfo(float).eps)
    axes.axvline(best, color=GREY, ls=":", lw=1.2)
    axes.text(best * 1.3, 3e-13, "cube root of epsilon", color=GREY, fontsize=9)
    axes.annotate("rounding", (1e-11, 1e-6), (3e-14, 1e-9), arrowprops={"arrowstyle": "-"})
    axes.annotate("truncation", (1.5e-3, 3e-7), (8e-3, 1e-10), arrowprops={"arrowstyle": "-"})
    axes.set(xlabel="step h", ylabel="error of the derivative", ylim=(1e-13, 300))
    axes.legend(frameon=False, loc="upper center", ncols=3)
    return figure


def windows() -> plt.Figure:
    """Chapter 4: a window that hangs over the border, and what a deep pixel sees."""
    figure, axes = canvas(8.6, 3.6)
    cell = 0.34
    x0, y0 = 0.35, 0.35
    padded = np.zeros((7, 8))
    padded[1:-1, 1:-1] = 0.25
    grid(axes, x0, y0, padded, cell, low=0, high=1)
    frame(axes, x0 + cell, y0 + cell, 6 * cell, 5 * cell, "black", lw=1.6)
    for i in range(7):
        for j in range(8):
            if i in (0, 6) or j in (0, 7):
                axes.text(x0 + (j + 0.5) * cell, y0 + (6.5 - i) * cell, "0", ha="center",
                          va="center", fontsize=8, color=GREY)  # fmt: skip
    frame(axes, x0 + 3 * cell, y0 + 4 * cell, 3 * cell, 3 * cell, RED)
    x1 = 3.55
    y = np.full((5, 6), 0.1)
    y[0, 3] = 0.6
    grid(axes, x1, y0 + cell, y, 0.26, low=0, high=1)
    target = (x1 + 3.5 * 0.26, y0 + cell + 4.5 * 0.26)
    arrow(axes, (x0 + 6 * cell, y0 + 5.5 * cell), target, RED)
    axes.text(x0, 3.15, "3x3 window, padding 1:\nthree taps meet zeros", fontsize=10, va="center")
    axes.text(x1, 0.42, "output, 5 x 6", fontsize=9, va="center", color=GREY)
    axes.text(x0, 0.2, "input 5 x 6 and its border", fontsize=9, va="center", color=GREY)
    small = 0.17
    places = ((5.85, 0.5, 7, "image"), (7.45, 0.67, 5, "layer 1"), (7.62, 2.2, 3, "layer 2"))
    for k, (left, base, rows, name) in enumerate(places):
        half, middle = 2 - k, rows // 2
        values = np.full((rows, rows), 0.08)
        seen = slice(middle - half, middle + half + 1)
        values[seen, seen] = 0.55
        grid(axes, left, base, values, small, low=0, high=1)
        side = 2 * half + 1
        label = f"{name}: {side} x {side}"
        if name == "layer 2":
            axes.text(left - 0.1, base + 0.25, label, ha="right", va="center", fontsize=9)
        else:
            axes.text(left + rows * small / 2, 0.33, label, ha="center", va="center", fontsize=9)
    arrow(axes, (7.08, 1.1), (7.42, 1.1), BLUE)
    arrow(axes, (7.87, 1.56), (7.87, 2.17), BLUE)
    axes.text(5.75, 3.15, "two 3x3 layers:\none pixel sees 5 x 5", fontsize=10, va="center")
    return figure


def pooling() -> plt.Figure:
    """Chapter 5: the winner takes the gradient; an average shares it."""
    x = np.array([[1.0, 5, 2, 0], [3, 4, 9, 1], [7, 0, 2, 2], [6, 8, 1, 3]])[None, :, :, None]
    dy = np.array([[10.0, 20], [30, 40]])[None, :, :, None]
    y, argmax = ops.maxpool2d_forward(x, 2, 2)
    dx = ops.maxpool2d_backward(dy, argmax, x.shape, 2, 2)
    shared = ops.avgpool2d_backward(dy, x.shape, 2, 2)
    figure, axes = canvas(8.6, 3.0)
    cell, base = 0.42, 0.55

    def show(left, values, title, high, cmap, bold=None):
        values = values[0, :, :, 0]
        size = cell * 4 / len(values)
        text = [[f"{v:g}" for v in row] for row in values]
        grid(axes, left, base, values, size, cmap=cmap, low=0, high=high, text=text, size=10)
        axes.text(left + 2 * cell, base + 4 * cell + 0.12, title, ha="center", va="bottom")
        if len(values) == 4:
            for i in range(2):
                for j in range(2):
                    corner = left + 2 * j * cell, base + 2 * i * cell
                    frame(axes, *corner, 2 * cell, 2 * cell, "black", lw=1.5)
        if bold is not None:
            for i, j in np.argwhere(bold):
                corner = left + j * cell + 0.03, base + (3 - i) * cell + 0.03
                frame(axes, *corner, cell - 0.06, cell - 0.06, RED)

    won = dx[0, :, :, 0] > 0
    show(0.2, x, "x", 18, "Blues", won)
    show(2.4, y, "y = largest", 18, "Blues")
    show(4.6, dx, "dx: to the winner", 80, "Oranges", won)
    show(6.8, shared, "dx of an average", 80, "Oranges")
    arrow(axes, (0.2 + 4 * cell + 0.08, 1.4), (2.32, 1.4), BLUE)
    axes.text(4.33, 1.4, "dy =\n10 20\n30 40", ha="center", va="center", color=RED, fontsize=9)
    axes.text(0.2, 0.25, "Marked in red: the winner of each 2 x 2 cell.", fontsize=9, color=GREY)
    return figure


def batchnorm() -> plt.Figure:
    """Chapter 6: three channels before and after, and the three terms of dx."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 3)) * (0.5, 1.0, 2.0) + (-4.0, 0.5, 5.0)
    y, mean, inv_std = ops.batchnorm_forward(x, np.ones(3), np.zeros(3), 1e-3)
    figure, all_axes = plt.subplots(
        1, 3, figsize=(8.6, 2.9), layout="constrained", width_ratios=(1, 1, 1.25)
    )
    styles = ((BLUE, "-"), (ORANGE, "--"), (GREEN, ":"))
    for axes, values, title in ((all_axes[0], x, "before"), (all_axes[1], y, "after")):
        bins = np.linspace(-11, 11, 45) if title == "before" else np.linspace(-4, 4, 24)
        for c, (color, line) in enumerate(styles):
            axes.hist(
                values[:, c],
                bins,
                histtype="step",
                color=color,
                ls=line,
                lw=1.8,
                label=f"channel {c}",
            )
        axes.set(title=title, xlabel="value", yticks=[])
        axes.spines["left"].set_visible(False)
    all_axes[0].legend(frameon=False, fontsize=8, loc="upper right")
    few = np.sort(rng.standard_normal((12, 1)), axis=0) + 1
    dy = rng.standard_normal((12, 1)) + 0.8
    _, mean, inv_std = ops.batchnorm_forward(few, np.ones(1), np.zeros(1), 1e-3)
    dx, dgamma, dbeta = ops.batchnorm_backward(dy, few, np.ones(1), mean, inv_std)
    xhat = (few - mean) * inv_std
    terms = (
        ("direct", inv_std * dy, BLUE, "o"),
        ("through the mean", -inv_std * dbeta / 12 + 0 * dy, ORANGE, "s"),
        ("through the variance", -inv_std * xhat * dgamma / 12, GREEN, "^"),
    )
    axes = all_axes[2]
    for label, term, color, marker in terms:
        axes.plot(few, term, color=color, marker=marker, ms=4, lw=1, label=label)
    axes.plot(few, dx, color="black", marker="D", ms=5, lw=2, label="dx, their sum")
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set(title="the three terms of dx", xlabel="x")
    axes.set_ylim(None, 3.9)
    axes.legend(
        frameon=False, fontsize=8, ncols=2, loc="upper center", columnspacing=1, handlelength=1.5
    )
    return figure


def convolution_involution() -> plt.Figure:
    """Chapter 7: one kernel for every pixel, or a kernel for each."""
    image = digit()
    pixels = ((3, 3), (6, 8), (11, 10))
    colors = (BLUE, ORANGE, RED)
    styles = ("-", "--", ":")
    fixed = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    vertical, diagonal = fixed.T, np.array([[0.0, 1, 2], [-1, 0, 1], [-2, -1, 0]])
    figure, axes = canvas(8.6, 5.0)
    cell, small = 0.14, 0.24
    rows = (
        (
            2.75,
            "convolution",
            (fixed, fixed, fixed),
            "one weight, learned, the same at every pixel",
        ),
        (
            0.25,
            "involution",
            (diagonal, vertical, -fixed),
            "a kernel for every pixel, made from it",
        ),
    )
    for base, name, kernels, caption in rows:
        grid(axes, 0.2, base, image, cell, low=0, high=1.3, lines=None)
        frame(axes, 0.2, base, 14 * cell, 14 * cell, GREY, lw=1)
        axes.text(2.5, base + 1.82, name, weight="bold", fontsize=12, va="center")
        axes.text(3.95, base + 1.82, caption, fontsize=10, va="center", color=GREY)
        for k, ((i, j), color, style) in enumerate(zip(pixels, colors, styles, strict=True)):
            x, y = 0.2 + (j - 1) * cell, base + (12 - i) * cell
            frame(axes, x, y, 3 * cell, 3 * cell, color, style)
            left = 3.6 + 1.75 * k
            text = [[f"{v:+g}" if v else "0" for v in row] for row in kernels[k]]
            grid(axes, left, base + 0.55, kernels[k], small, "PuOr", -3, 3, text, 8)
            frame(axes, left, base + 0.55, 3 * small, 3 * small, color, style)
            label = f"pixel ({i}, {j})"
            axes.text(left + 0.36, base + 0.4, label, ha="center", va="center", fontsize=9)
            if name == "involution":
                box(axes, left - 0.75, base + 0.73, 0.5, 0.36, "x[i,j]", "white", color, fontsize=8)
                arrow(axes, (left - 0.25, base + 0.91), (left - 0.03, base + 0.91), color)
        if name == "convolution":
            box(axes, 2.4, base + 0.73, 0.7, 0.36, "weight", LIGHT, fontsize=9)
            axes.plot((2.75, 2.75), (base + 1.09, base + 1.45), color="black", lw=1.2)
            axes.plot((2.75, 3.96 + 3.5), (base + 1.45, base + 1.45), color="black", lw=1.2)
            for k in range(3):
                x = 3.96 + 1.75 * k
                arrow(axes, (x, base + 1.45), (x, base + 1.3), width=1.2)
    return figure


def attention() -> plt.Figure:
    """Chapter 8: a kernel generated from one pixel, or compared with each."""
    figure, axes = canvas(8.6, 4.0)
    cell = 0.27
    for left, name in ((0.25, "involution: generate"), (4.5, "attention: compare")):
        generate = name[0] == "i"
        axes.text(left, 3.75, name, weight="bold", fontsize=12, va="center")
        window = np.full((3, 3), 0.12)
        window[1, 1] = 0.45
        grid(axes, left, 2.3, window, cell, low=0, high=1)
        centre = (left + 1.5 * cell, 2.3 + 1.5 * cell)
        color = BLUE if generate else ORANGE
        if generate:
            box(axes, left + 1.35, 2.4, 0.95, 0.6, "reduce, norm\nReLU, span", LIGHT, fontsize=8)
            arrow(axes, centre, (left + 1.33, 2.7), color)
            kernel = np.array([[0.4, -0.2, 0.1], [-0.6, 1.1, -0.3], [0.2, 0.5, -0.4]])
            note = "any sign, any sum"
        else:
            box(axes, left + 1.35, 2.4, 0.95, 0.6, "query \u00b7 keys\nsoftmax", LIGHT, fontsize=8)
            for i in range(3):
                for j in range(3):
                    start = (left + (j + 0.5) * cell, 2.3 + (i + 0.5) * cell)
                    arrow(axes, start, (left + 1.33, 2.55 + 0.15 * i), color, width=0.9)
            kernel = np.array([[0.05, 0.1, 0.05], [0.2, 0.3, 0.1], [0.05, 0.1, 0.05]])
            note = "positive, adds up to 1"
        text = [[f"{v:.1f}" if generate else f"{v:.2f}" for v in row] for row in kernel]
        size = cell * 1.25
        grid(axes, left + 2.65, 2.2, kernel, size, "PuOr", -1.5, 1.5, text, 8)
        arrow(axes, (left + 2.3, 2.7), (left + 2.62, 2.7), color)
        axes.text(left + 2.65 + 1.5 * size, 2.05, note, ha="center", va="center", fontsize=9)
        arrow(axes, (left + 2.65 + 1.5 * size, 1.92), (left + 2.65 + 1.5 * size, 1.12), color)
        arrow(axes, (left + 0.4, 2.24), (left + 0.4, 1.12), GREY)
        text = "window of x" if generate else "window of the values v,\nmade from x"
        axes.text(left + 0.5, 1.6, text, fontsize=9, color=GREY, va="center")
    box(axes, 0.25, 0.45, 8.1, 0.65, "involution_forward: sum over the window, tap times kernel",
        LIGHT, fontsize=11)  # fmt: skip
    arrow(axes, (4.3, 0.45), (4.3, 0.15))
    axes.text(4.4, 0.25, "y", va="center", fontsize=11)
    return figure


def training() -> plt.Figure:
    """Chapter 9: the twins on glyphs."""
    glyphs = data.load("glyphs", train=2000, test=500)
    figure, all_axes = plt.subplots(1, 2, figsize=(8.6, 3.3), layout="constrained")
    epochs = range(1, 9)
    for operator, color, marker in (("convolution", BLUE, "o"), ("involution", RED, "^")):
        model = sn.models.report_network("glyphs", operator, rng=np.random.default_rng(0))
        optimizer = sn.Adam(model.parameters(), lr=1e-3)
        records = sn.fit(
            model, glyphs.train, glyphs.test, epochs=8, batch_size=32, optimizer=optimizer
        ).epochs
        for axes, name in zip(all_axes, ("loss", "accuracy"), strict=True):
            seen = [getattr(record, name) for record in records]
            unseen = [getattr(record, f"val_{name}") for record in records]
            axes.plot(epochs, seen, "--", color=color, marker=marker, mfc="white", lw=1.4,
                      label=f"{operator}, training")  # fmt: skip
            axes.plot(epochs, unseen, "-", color=color, marker=marker, lw=1.8,
                      label=f"{operator}, validation")  # fmt: skip
    for axes, name, chance in zip(all_axes, ("loss", "accuracy"), (np.log(10), 0.1), strict=True):
        axes.axhline(chance, color=GREY, ls=":", lw=1.2)
        axes.set(xlabel="epoch", title=name, xticks=list(epochs))
    all_axes[0].set_ylim(0, 2.9)
    all_axes[1].set_ylim(0, 1)
    all_axes[0].text(8, 2.33, "knows nothing", color=GREY, fontsize=9, ha="right", va="bottom")
    all_axes[1].text(8, 0.11, "guessing", color=GREY, fontsize=9, ha="right", va="bottom")
    all_axes[1].legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1, 0.56))
    return figure


def memory_traffic() -> plt.Figure:
    """Chapter 10: bytes moved by unfolding, and without."""
    C, G, K = 64, 4, 7
    image, kernels = 1.0, K * K * G / C
    ways = (
        ("unfold", (("read x", image), ("write 49 copies", K * K * image),
                    ("read 49 copies", K * K * image), ("read kernels", kernels),
                    ("write y", image))),
        ("fused", (("read x", image), ("read kernels", kernels), ("write y", image))),
    )  # fmt: skip
    looks = {
        "read x": (BLUE, ""),
        "write 49 copies": (ORANGE, "//"),
        "read 49 copies": ("#F5D08A", "\\\\"),
        "read kernels": (GREEN, ".."),
        "write y": (PINK, "xx"),
    }
    figure, axes = plt.subplots(figsize=(8.6, 2.4), layout="constrained")
    for row, (_, parts) in enumerate(ways):
        left = 0.0
        for name, width in parts:
            color, hatch = looks[name]
            label = name if row == 0 else None
            axes.barh(1 - row, width, left=left, height=0.6, color=color, hatch=hatch,
                      edgecolor="black", lw=0.6, label=label)  # fmt: skip
            left += width
        axes.text(left + 0.8, 1 - row, f"{left:.0f} images", va="center", fontsize=10)
    axes.set(yticks=(0, 1), yticklabels=("fused", "unfold"), xlim=(0, 116), ylim=(-0.5, 1.9))
    axes.set_xlabel("numbers moved, in sizes of the image x (K = 7, C = 64, G = 4)")
    axes.legend(frameon=False, ncols=5, fontsize=8.5, loc="upper center")
    return figure


def gpu_tiles() -> plt.Figure:
    """Chapter 11: what a block and a thread of the kernel `tiled` own."""
    figure, axes = canvas(8.6, 3.75)
    cell = 0.27
    x0, y0 = 0.3, 1.0
    image = np.full((7, 10), 0.05)
    image[2:5, 1:7] = 0.22
    grid(axes, x0, y0, image, cell, low=0, high=1)
    frame(axes, x0 + 2 * cell, y0 + 3 * cell, 4 * cell, cell, "black")
    frame(axes, x0 + 1.03 * cell, y0 + 2.03 * cell, 2.94 * cell, 2.94 * cell, BLUE, "-")
    frame(axes, x0 + 2.06 * cell, y0 + 2.12 * cell, 2.9 * cell, 2.76 * cell, RED, "--")
    axes.text(
        x0, y0 + 7 * cell + 0.55, "image x, one group of channels", weight="bold", fontsize=10
    )
    axes.text(x0, y0 + 7 * cell + 0.15, "black: a block's pixels; grey: their windows", fontsize=9)
    axes.text(x0, y0 - 0.25, "window of pixel 0", color=BLUE, fontsize=9)
    axes.text(x0, y0 - 0.48, "window of pixel 1: new is one column", color=RED, fontsize=9)
    x1, side = 3.75, 0.34
    owners = np.full((4, 4), 0.1)
    owners[0], owners[1] = 0.4, 0.25
    text = [[f"{p},{c}" for c in range(4)] for p in range(4)]
    grid(axes, x1, 1.45, owners, side, "Blues", 0, 1, text, 8)
    axes.text(x1, 3.44, "threads of the block", weight="bold", fontsize=10)
    axes.text(x1, 3.04, "(pixel, channel)", fontsize=9)
    axes.text(x1 + 2 * side, 1.25, "channels: neighbours in memory", ha="center", fontsize=9)
    arrow(axes, (x1, 1.12), (x1 + 4 * side, 1.12), GREY)
    x2, small = 6.35, 0.2
    box(axes, x2 - 0.2, 0.92, 2.25, 2.38, "", "#FFF8E6", ORANGE)
    axes.text(x2 - 0.2, 3.44, "shared memory", weight="bold", fontsize=10)
    axes.text(x2 - 0.1, 3.08, "weights of the 4 pixels", fontsize=9)
    shades = np.array([[0.2, 0.5, 0.3], [0.4, 0.8, 0.6], [0.1, 0.6, 0.3]])
    for p in range(4):
        left, base = x2 + (p % 2) * 1.0, 2.2 - (p // 2) * 1.0
        grid(axes, left, base, np.roll(shades, p), small, "Oranges", 0, 1)
        axes.text(left + 0.3, base - 0.13, f"pixel {p}", ha="center", va="center", fontsize=8)
    arrow(axes, (x2 - 0.22, 2.65), (x1 + 4 * side + 0.05, 2.65), ORANGE)
    axes.text(5.62, 2.78, "read by\n4 threads", ha="center", fontsize=8.5, color=GREY)
    arrow(axes, (x0 + 10 * cell + 0.05, 2.0), (x1 - 0.05, 2.0), BLUE)
    arrow(axes, (7.3, 0.4), (7.3, 0.9), ORANGE)
    axes.text(
        7.3, 0.24, "loaded once, by all threads together", ha="center", fontsize=9, color=GREY
    )
    return figure


def mutants() -> plt.Figure:
    """Chapter 12: which check of the suite catches which share of an operator's mistakes."""
    sys.path.insert(0, str(ROOT / "tests"))
    table = importlib.import_module("mutants")
    caught: dict[str, list] = {}
    for mutant in table.MUTANTS:
        module = table.load(mutant.operator, mutant.replacements)
        caught.setdefault(mutant.operator, []).append(table.rejections(module, mutant.operator))
    names = ("by hand", "gradient", "adjoint", "euler", "plain loops")
    figure, axes = plt.subplots(figsize=(7.4, 5.6), layout="constrained")
    for row, rejections in enumerate(caught.values()):
        for column, name in enumerate(names):
            share = np.mean([name in found for found in rejections])
            if share == 0:
                axes.text(column, row, "-", ha="center", va="center", color=GREY)
                continue
            color = plt.get_cmap("Blues")(0.25 + 0.6 * share)
            corner = (column - 0.25, row - 0.38)
            axes.add_patch(patches.Rectangle(corner, 0.5, 0.76, fc=color, ec="black", lw=0.6))
            ink = "white" if share > 0.55 else "black"
            axes.text(
                column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8.5, color=ink
            )
    labels = [f"{operator} ({len(found)})" for operator, found in caught.items()]
    axes.set(yticks=range(len(labels)), yticklabels=labels, xticks=range(len(names)))
    axes.set_xticklabels([name.replace("euler", "Euler") for name in names])
    axes.set(xlim=(-0.6, 4.6), ylim=(len(labels) - 0.4, -0.6))
    axes.set_title(
        "per cent of the planted mistakes caught; in brackets, how many were planted",
        x=0.5 - 0.14, fontsize=10,
    )  # fmt: skip
    axes.xaxis.set_ticks_position("top")
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def mixed_network(rng: np.random.Generator) -> sn.Sequential:
    """Chapter 13's network of involutions between layers that mix the channels."""

    def norm(channels):
        return sn.BatchNorm(channels, momentum=0.9), sn.ReLU()

    return sn.Sequential(
        sn.Conv2D(1, 16, 3, stride=2, padding="same", rng=rng), *norm(16),
        sn.Involution2D(16, 5, groups=4, momentum=0.9, rng=rng), *norm(16),
        sn.Conv2D(16, 32, 1, rng=rng), *norm(32),
        sn.MaxPool2D(2),
        sn.Involution2D(32, 3, groups=4, reduction=4, momentum=0.9, rng=rng), *norm(32),
        sn.Conv2D(32, 32, 1, rng=rng), *norm(32),
        sn.MaxPool2D(2),
        sn.Flatten(), sn.Dense(288, 10, rng=rng),
    )  # fmt: skip


def learned_kernels() -> plt.Figure:
    """Chapter 13: the kernels that a trained involution makes on digits."""
    glyphs = data.load("glyphs", train=2000, test=500)
    model = mixed_network(np.random.default_rng(0))
    optimizer = sn.Adam(model.parameters(), lr=1e-3)
    sn.fit(model, glyphs.train, epochs=6, batch_size=32, optimizer=optimizer)
    chosen = [int(np.flatnonzero(glyphs.test.labels == label)[1]) for label in (0, 2, 4)]
    x = h = glyphs.test.images[chosen].astype(np.float32) / 255
    for layer in model.layers[:3]:
        h = layer.forward(h)
    kernels = model.layers[3].kernels(h)  # (3, 14, 14, 4, 5, 5)
    sums = kernels.sum(axis=(4, 5))
    figure, all_axes = plt.subplots(
        3, 8, figsize=(8.6, 3.9), layout="constrained", width_ratios=(1,) * 5 + (0.6,) * 3
    )
    spread = np.abs(sums).max(axis=(0, 1, 2))  # each group has its own scale
    group, pixels = 1, ((2, 2), (7, 7), (10, 5))
    marks = ((BLUE, "o"), (RED, "s"), (GREEN, "^"))
    tap_limit = np.abs(kernels[:, :, :, group]).max()
    for row, axes_of_row in enumerate(all_axes):
        axes_of_row[0].imshow(x[row, :, :, 0], cmap="gray_r")
        for (i, j), (color, marker) in zip(pixels, marks, strict=True):
            axes_of_row[0].plot(2 * j + 0.5, 2 * i + 0.5, marker, color=color, ms=7, mec="white")
        for g in range(4):
            shown = axes_of_row[1 + g].imshow(
                sums[row, :, :, g] / spread[g], cmap="PuOr", vmin=-1, vmax=1
            )
        for k, ((i, j), (color, _)) in enumerate(zip(pixels, marks, strict=True)):
            axes = axes_of_row[5 + k]
            axes.imshow(kernels[row, i, j, group], cmap="PuOr", vmin=-tap_limit, vmax=tap_limit)
            for spine in axes.spines.values():
                spine.set(visible=True, color=color, lw=1.8)
        for axes in axes_of_row:
            axes.set(xticks=[], yticks=[])
        for axes in axes_of_row[:5]:
            for spine in axes.spines.values():
                spine.set(visible=True, color=LIGHT)
    titles = ["image", *(f"group {g}" for g in range(4)), "\u25cf", "\u25a0", "\u25b2"]
    inks = ["black"] * 5 + [color for color, _ in marks]
    for axes, title, ink in zip(all_axes[0], titles, inks, strict=True):
        axes.set_title(title, fontsize=9.5, color=ink)
    all_axes[2, 6].set_xlabel(f"kernels of group {group}", fontsize=9)
    bar = figure.colorbar(shown, ax=all_axes[:, 1:5], location="bottom", shrink=0.6, aspect=40)
    bar.set_label("sum of each pixel's 5 x 5 kernel values, over the group's largest", fontsize=9)
    return figure


FIGURES: dict[str, Callable[[], plt.Figure]] = {
    figure.__name__: figure
    for figure in (
        forward_backward,
        softmax_gradient,
        finite_differences,
        windows,
        pooling,
        batchnorm,
        convolution_involution,
        attention,
        training,
        memory_traffic,
        gpu_tiles,
        mutants,
        learned_kernels,
    )
}


def draw(name: str, folder: Path) -> Path:
    """Draw one figure as a PNG; the same bits each time."""
    with plt.rc_context(STYLE):
        figure = FIGURES[name]()
        path = folder / f"{name}.png"
        figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})
        plt.close(figure)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"figures, of {', '.join(FIGURES)}; default all")
    parser.add_argument("--sources", action="store_true", help="rewrite the source that is shown")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in FIGURES]
    if unknown:
        parser.error(f"{unknown[0]!r} is no figure, accepted are {', '.join(FIGURES)}")
    if options.sources:
        TUTORIAL.write_text(with_sources(TUTORIAL.read_text(encoding="utf-8")), encoding="utf-8")
        return
    FOLDER.mkdir(exist_ok=True)
    for name in options.names or FIGURES:
        path = draw(name, FOLDER)
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
