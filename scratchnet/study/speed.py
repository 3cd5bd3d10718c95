"""The report's section on the question that the student report left open: which is faster?"""

from collections.abc import Iterator

from scratchnet.models import OPERATORS
from scratchnet.study.results import Study, table, totals
from scratchnet.study.runs import DATASETS

STARTED_ALONE = (
    "Here every layer is started from Python and waited for, which takes longer than most of them "
    "do; training records its steps and replays them, see its seconds in Table 1."
)
STARTED = {"cpu": "", "cuda": ", with the time to start it from Python"}
COSTS = ("million multiply-adds", "MB", "GFLOP/s", "GB/s", "ps a multiply-add")


def speed_answers(study: Study) -> Iterator[str]:
    """The answer in three sentences: of a network, of a multiply-add, of a layer."""
    yield from _fastest_network(study)
    yield from _time_of_a_multiply_add(study)
    yield from _fastest_layer(study)


def _fastest_network(study: Study) -> Iterator[str]:
    for backend in study.results["profiles"] or {}:
        if backend == "cuda":
            what, ratios = "training", _training_ratios(study, backend)
        else:
            what, ratios = "step", _step_ratios(study, backend)
        if ratios is None:
            continue
        told = ", ".join(
            f"{ratio:.1f} times on {study.title(dataset)}"
            for ratio, dataset in zip(ratios, DATASETS, strict=True)
        )
        answer = (
            f"A {what} of the involution network is faster than one of the convolution network"
            if min(ratios) > 1
            else f"Convolution {what} over involution {what}:"
        )
        yield f"- **The network** ({backend}). {answer} {told}."


def _step_ratios(study: Study, backend: str) -> list[float]:
    """Time of a convolution network's step over that of its involution twin, by data set."""
    networks = study.results["profiles"][backend]["networks"]
    pairs = [
        [networks[f"{dataset}/{operator}"]["ms"] for operator in OPERATORS] for dataset in DATASETS
    ]
    return [convolution / involution for convolution, involution in pairs]


def _training_ratios(study: Study, backend: str) -> list[float] | None:
    """The same of whole trainings, whose steps a GPU replays: none of them waits for Python."""
    pairs = [
        [study.mean(f"{dataset}/{operator}", "training_seconds", backend) for operator in OPERATORS]
        for dataset in DATASETS
    ]
    if any(seconds is None for pair in pairs for seconds in pair):
        return None
    return [convolution / involution for convolution, involution in pairs]


def _time_of_a_multiply_add(study: Study) -> Iterator[str]:
    for backend, of_backend in (study.results["profiles"] or {}).items():
        if backend == "cuda":
            continue  # to start such small layers takes longer than they do
        ratios = []
        for dataset in DATASETS:
            times = []
            for operator in OPERATORS:
                layers = of_backend["networks"][f"{dataset}/{operator}"]["layers"]
                total = totals([layer for layer in layers if layer["operator"] == operator])
                times.append(total["ms"] / total["multiply_adds"])
            ratios.append(times[1] / times[0])
        told = (
            f"- **The multiply-add** ({backend}). In these networks one multiply-add of an "
            f"involution takes {min(ratios):.1f} to {max(ratios):.1f} times as long as one of a "
            "convolution"
        )
        if min(ratios) > 1 and min(_step_ratios(study, backend)) > 1:
            told += (
                ": the involution network is faster because it does less, not because it does it "
                "faster"
            )
        yield f"{told}."


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
            f"- **The layer** ({backend}{STARTED[backend]}). Time of a 3 x 3 convolution over that "
            f"of a 3 x 3 involution on the same image, by channels: {', '.join(told)}. Above 1 the "
            "involution is the faster one."
        )


def speed(study: Study, figures: dict[str, str]) -> list[str]:
    """The section on speed, by lines; empty where nothing was timed."""
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
            lines += _layer_table(study.row_title(name), timed)
        lines += ["</details>"]
    return lines


def _speed_of_networks(study: Study, backend: str, of_backend: dict) -> list[str]:
    limits = of_backend["limits"]
    rows = []
    for name, timed in of_backend["networks"].items():
        total = totals(timed["layers"])
        rate = f"{1e3 * timed['batch'] / timed['ms']:,.0f}"
        rows.append([study.row_title(name), f"{timed['ms']:.2f}", rate, *_cost_cells(total)])
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
        "product's that multiplications were saved (Winograd)."
        + (" " + STARTED_ALONE if backend == "cuda" else ""),
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
        "groups of 16 channels, reduction 4. Attention sums its windows as the involution does, by "
        "the same loops; besides it has three 1 x 1 convolutions, and a softmax over each window.",
    ]


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
