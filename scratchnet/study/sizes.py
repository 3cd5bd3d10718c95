"""The report's sections on equal sizes and on the report's other claims."""

from collections.abc import Iterator

from scratchnet.models import OPERATORS
from scratchnet.study.results import GOALS, PAIRS, ROW_TITLES, THEIRS, Study, gap, number, table
from scratchnet.study.runs import COMPACT, DATASETS


def better_at_equal_size(study: Study) -> Iterator[str]:
    """The answer in a sentence for each size: which network is more accurate, and how fast."""
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


def equal_sizes(study: Study, figures: dict[str, str]) -> list[str]:
    """The section on networks of equal size, by lines; empty where none has run."""
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
        study.seconds(row),
        number(study.mean(row, "images_per_second"), ",.0f"),
    ]


def claims(study: Study) -> list[str]:
    """The section on the other claims, by lines; empty where nothing speaks of them."""
    lines = ["## The report's other claims", ""]
    ratios = []
    for dataset in DATASETS:
        one, other = (study.parameters(f"{dataset}/{operator}") for operator in OPERATORS)
        if one and other:
            ratios.append(f"{one / other:.1f} on {study.title(dataset)}")
    if ratios:
        told = ", ".join(ratios)
        lines += [f'**"Up to 65 times" fewer parameters.** The factor is {told}.', ""]
    lines += _gaps(study) + _compact(study)
    return lines if len(lines) > 2 else []


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
        told += f" A convolution of its size has a gap of up to {largest:+.2f} points"
        told += ": a small gap comes with few parameters." if smaller and largest < 1 else "."
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
        "One seed, AdamW along a cosine, on images that are shifted, and turned and zoomed on "
        "MNIST, mirrored on the others.",
    ]
