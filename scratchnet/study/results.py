"""The study's results, and how to ask them: what the tables and figures are made of."""

import statistics
from collections.abc import Sequence

from scratchnet.history import Epoch, History
from scratchnet.study.runs import COMPACT

# The student report's Table 1: accuracy in per cent, seconds of training on its GPU and its CPU.
THEIRS = {
    "mnist/convolution": (98.97, 65.26, 502.75),
    "mnist/involution": (88.82, 73.35, 323.23),
    "fashion-mnist/convolution": (91.91, 86.23, 982.03),
    "fashion-mnist/involution": (82.34, 479.08, 621.97),
    "cifar10/convolution": (64.78, 142.44, 1077.86),
    "cifar10/involution": (31.10, 203.27, 922.53),
}

GOALS = {"mnist": 0.995, "fashion-mnist": 0.93, "cifar10": 0.85}

ROW_TITLES = {
    "convolution": "convolution",
    "involution": "involution",
    "attention": "window attention",
    "small-convolution": "convolution, as small as the involution",
    "wide-involution": "involution, as large as the convolution",
    COMPACT: "compact involution network",
}

# Networks of one size, involution first.
PAIRS = (("involution", "small-convolution"), ("wide-involution", "convolution"))


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

    def seconds(self, row: str, backend: str | None = None) -> str:
        """Of training, and the number of threads where it is not the study's."""
        mean = self.mean(row, "training_seconds", backend)
        threads = {outcome["machine"]["threads"] for outcome in self.outcomes(row, backend)}
        if backend == "cuda" or threads <= {self.results["machine"]["threads"]}:
            return number(mean)
        return f"{number(mean)} ({min(threads)} thread{'s' if min(threads) > 1 else ''})"

    def accuracy(self, row: str, backend: str | None = None) -> str:
        """Mean and standard deviation over the seeds, in per cent."""
        values = [100 * outcome["accuracy"] for outcome in self.outcomes(row, backend)]
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

    def row_title(self, row: str) -> str:
        """In words: "mnist/involution" is "MNIST, involution"."""
        dataset, network = row.split("/")[:2]
        return f"{self.title(dataset)}, {ROW_TITLES[network]}"


def gap(outcomes: Sequence[dict]) -> float | None:
    """Training minus validation accuracy in the last epoch, in points, the mean over seeds."""
    if not outcomes:
        return None
    last = [outcome["history"][-1] for outcome in outcomes]
    return statistics.fmean(100 * (epoch["accuracy"] - epoch["val_accuracy"]) for epoch in last)


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


def totals(layers: Sequence[dict]) -> dict[str, float]:
    """Milliseconds, multiply-adds and bytes of layers, forward and backward."""
    ways = [layer[way] for layer in layers for way in ("forward", "backward")]
    return {name: sum(way[name] for way in ways) for name in ("ms", "multiply_adds", "bytes")}


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A Markdown table, the first `left` columns aligned left."""
    marks = ["---"] * left + ["---:"] * (len(header) - left)
    return ["| " + " | ".join(cells) + " |" for cells in (header, marks, *rows)]


def number(value: float | None, form: str = ",.1f") -> str:
    """The value in that format, a dash where there is none."""
    return "–" if value is None else format(value, form)
