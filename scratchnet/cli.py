"""The command `scratchnet`: its words, and what each of them does."""

import argparse
import math
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from scratchnet import data, models
from scratchnet.backends import DEVICES, BackendError, choose_backend, get_backend
from scratchnet.checkpoint import CheckpointError
from scratchnet.comparison import compare, results_table, say, train
from scratchnet.experiment import (
    PIXELS,
    SCHEDULES,
    Experiment,
    check_writable,
    load_trained,
    usual_experiment,
)
from scratchnet.machine import gpu_name, machine, set_threads, versions
from scratchnet.progress import clock
from scratchnet.study import (
    DATASETS,
    quick_share,
    run_study,
    study_devices,
    study_rows,
    write_study_report,
)
from scratchnet.training import TrainingDiverged, evaluate

EXAMPLES = """\
examples:
  python -m scratchnet                                compare both operators on glyphs, in a minute
  python -m scratchnet compare --dataset mnist        the same on MNIST, by the report's schedule
  python -m scratchnet train --dataset cifar10 --network involution --epochs 2
  python -m scratchnet evaluate runs/mnist/convolution
  python -m scratchnet data show fashion-mnist
"""
COMPARE = """\
The folder gets report.md with its figures, results.json with every number, and a
sub-folder a network with its checkpoints. Ctrl-C keeps what was learned; --resume
goes on from there, to the same bits.

examples:
  python -m scratchnet compare --dataset fashion-mnist --epochs 2 --train-images 10000
  python -m scratchnet compare --dataset mnist --seed 1 --out runs/mnist-1
"""
REPORT = """\
Trains the networks of the report, and those that answer what it left open, on MNIST,
Fashion-MNIST and CIFAR-10; times every layer; writes report.md with its figures, and
results.json with every number. What was trained before is taken as it is, so a study
that was stopped goes on with the same command.

examples:
  python -m scratchnet report --quick
  python -m scratchnet report --seeds 1 --report-pixels
  python -m scratchnet report --only mnist/involution
"""
ERRORS = (CheckpointError, data.DataError, TrainingDiverged, BackendError, ValueError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process.

    Returns 0, 1 for an error told in one sentence on standard error, 130 after Ctrl-C.
    raises SystemExit(2) where the arguments cannot be understood, SystemExit(0) after --help
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version")):
        argv = ["compare", *argv]
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        # What is not finite is found and told by fit, which knows where it came from.
        with _plain_warnings(), np.errstate(over="ignore", invalid="ignore"):
            if getattr(args, "threads", None) is not None:
                set_threads(args.threads)
            return args.run(args, argv)
    except KeyboardInterrupt:
        _complain("stopped")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does; there is nobody left to tell.
        sys.stdout = None
        return 1
    except ERRORS as error:
        _complain(str(error))
    except MemoryError as error:
        _complain(f"not enough memory: {error or 'fewer images, or smaller batches, need less'}")
    except OSError as error:
        # A full disk is found while writing to a file that is open, and then has no name.
        _complain(f"{error.filename or 'a file could not be written'}: {error.strerror or error}")
    return 1


def _compare(args: argparse.Namespace, argv: list[str]) -> int:
    out = Path(args.out or f"runs/{args.dataset}")
    check_writable(out)
    experiments = [_experiment(args, network) for network in models.OPERATORS]
    first = experiments[0]
    say(
        f"{first.dataset}: {first.epochs} epochs, batches of {first.batch_size}, "
        f"Adam {first.lr:g}, seed {first.seed}"
    )
    dataset = _load(args)
    outcomes = compare(experiments, dataset, out, resume=args.resume)
    histories = {o.experiment.network: o.history for o in outcomes}
    networks = {o.experiment.network: o.network for o in outcomes}
    say(f"\n{results_table(histories, networks)}\n\nwritten: {out / 'report.md'}")
    if outcomes[-1].history.interrupted:
        return _interrupted(argv)
    return 0


def _train(args: argparse.Namespace, argv: list[str]) -> int:
    out = Path(args.out or f"runs/{args.dataset}/{args.network}")
    check_writable(out)
    experiment = _experiment(args, args.network)
    outcome = train(experiment, _load(args), out, resume=args.resume)
    history = outcome.history
    table = results_table({args.network: history}, {args.network: outcome.network})
    say(f"\n{table}\n\nwritten: {out / 'best.npz'}, {out / 'last.npz'}, {out / 'history.json'}")
    if history.epochs:
        with clock("drawing the curves"):
            history.plot(out / "curves.png")
        say(f"written: {out / 'curves.png'}")
    return _interrupted(argv) if history.interrupted else 0


def _report(args: argparse.Namespace, argv: list[str]) -> int:
    out = Path(args.out or ("runs/report-quick" if args.quick else "runs/report"))
    rows = study_rows(
        1 if args.quick else args.seeds,
        raw_pixels=args.report_pixels or args.quick,
        quick=args.quick,
        devices=study_devices(args.device),
    )
    datasets: dict[str, data.Dataset] = {}

    def load(name: str) -> data.Dataset:
        with clock(f"reading {name}") if data.is_present(name) else nullcontext():
            whole = data.load(name)
        datasets[name] = quick_share(whole) if args.quick else whole
        return datasets[name]

    settings = {
        "quick": args.quick,
        "jpeg": args.jpeg,
        "command": f"python -m scratchnet {shlex.join(argv)}",
    }
    results = run_study(rows, out, load, only=args.only, settings=settings)
    for name in DATASETS:
        if name not in datasets and data.is_present(name):
            load(name)
    say(f"\nwritten: {write_study_report(rows, results, out, datasets)}")
    if results["interrupted"]:
        _complain("stopped; the same command goes on")
        return 130
    return 0


def _evaluate(args: argparse.Namespace, argv: list[str]) -> int:
    experiment, network = load_trained(args.checkpoint, _backend(args))
    args.dataset, args.train_images = experiment.dataset, None
    dataset = _load(args)
    with clock("evaluating"):
        loss, accuracy = evaluate(
            network, dataset.test, loss=experiment.loss(), **PIXELS[experiment.pixels]
        )
    say(
        f"{args.checkpoint}: {experiment.network} on {len(dataset.test):,} test images of "
        f"{experiment.dataset}: accuracy {accuracy:.2%}, loss {loss:.4f}"
    )
    return 0


def _summary(args: argparse.Namespace, argv: list[str]) -> int:
    networks = [args.network] if args.network else models.OPERATORS
    shape = models.INPUT_SHAPES[args.dataset]
    tables = [
        f"{args.dataset} / {network}\n\n"
        + models.summary(models.NETWORKS[network](args.dataset), shape)
        for network in networks
    ]
    say("\n\n".join(tables))
    return 0


def _data_list(args: argparse.Namespace, argv: list[str]) -> int:
    say(f"data folder: {data.data_root()}  (SCRATCHNET_DATA chooses another)\n")
    for name in data.NAMES:
        here = (
            "present" if data.is_present(name) else f"not there yet: scratchnet data fetch {name}"
        )
        say(f"  {name:14s} {'made here, no download needed' if name == 'glyphs' else here}")
    return 0


def _data_fetch(args: argparse.Namespace, argv: list[str]) -> int:
    for name in args.names:
        args.dataset, args.train_images = name, None
        dataset = _load(args)
        H, W, C = dataset.train.images.shape[1:]
        say(
            f"{name}: {len(dataset.train):,} training and {len(dataset.test):,} test images of "
            f"{H} x {W} x {C}, classes {', '.join(dataset.classes)}"
        )
    return 0


def _data_show(args: argparse.Namespace, argv: list[str]) -> int:
    path = Path(args.out or f"runs/{args.dataset}/samples.png")
    check_writable(path.parent)
    dataset = _load(args)
    with clock("drawing"):
        from scratchnet import plots  # matplotlib takes longer to import than all the rest

        plots.plot_samples(dataset.train, dataset.classes, path, seed=args.seed)
    say(f"written: {path}")
    return 0


def _gradcheck(args: argparse.Namespace, argv: list[str]) -> int:
    from scratchnet.gradcheck import GradientMismatch
    from scratchnet.selfcheck import gradient_checks

    backend = _backend(args)
    checks = gradient_checks(backend, args.seed)
    width = max(map(len, checks))
    say(f"{'':{width}s}   arrays   elements   rel. error")
    wrong = 0
    for name, check in checks.items():
        try:
            with clock(f"checking {name}"):
                report = check()
        except GradientMismatch as error:
            wrong += 1
            say(f"{name:{width}s}   WRONG: {error}")
        else:
            counts = [row.elements for row in report.rows if row.elements]
            told = f"{len(counts):6d}   {sum(counts):8d}   {report.worst.error:10.1e}"
            say(f"{name:{width}s}   {told}")
    right = f"{len(checks) - wrong} of {len(checks)} have the right gradients"
    say(f"\n{right} ({backend} backend)")
    return 1 if wrong else 0


def _info(args: argparse.Namespace, argv: list[str]) -> int:
    from importlib.metadata import version

    import numba

    with clock("asking Numba"):
        get_backend("cpu").relu_forward(np.zeros((1, 1), np.float32))  # starts its threads
        layer = numba.threading_layer()
        gpu = gpu_name()
    here = machine()
    libraries = versions() | {name: version(name) for name in ("matplotlib", "tqdm", "pooch")}
    rows = {
        "versions": ", ".join(f"{name} {number}" for name, number in libraries.items()),
        "platform": here["platform"],
        "cpu": here["cpu"],
        "threads": f"{here['threads']} of {here['cores']}, Numba's threading layer: {layer}",
        "blas": here["blas"],
        "gpu": gpu,
        "data": str(data.data_root()),
    }
    for name, value in rows.items():
        say(f"{name:9s} {value}")
    return 0


def _experiment(args: argparse.Namespace, network: str) -> Experiment:
    return usual_experiment(
        args.dataset,
        network,
        args.seed,
        _backend(args),
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
    )


def _backend(args: argparse.Namespace) -> str:
    """The backend for --device. raises BackendError where it cannot run here"""
    return args.device if args.device == "reference" else choose_backend(args.device)


def _load(args: argparse.Namespace) -> data.Dataset:
    """The data set; drawing and downloading have bars of their own, reading gets a clock."""
    quiet = args.dataset != "glyphs" and data.is_present(args.dataset)
    with clock(f"reading {args.dataset}") if quiet else nullcontext():
        return data.load(args.dataset, train=args.train_images)


def _interrupted(argv: list[str]) -> int:
    again = argv if "--resume" in argv else [*argv, "--resume"]
    _complain(f"stopped; to go on: python -m scratchnet {shlex.join(again)}")
    return 130


def _complain(message: str) -> None:
    print(f"scratchnet: {message}", file=sys.stderr)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """A warning as one sentence, without the line of code that raised it."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _complain(str(message))
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scratchnet",
        description="Convolution and involution networks from scratch. Without a command: compare.",
        epilog=EXAMPLES,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=versions()["scratchnet"])
    commands = parser.add_subparsers(title="commands", metavar="<a command>", required=True)

    command = _command(
        commands, "compare", _compare, "train both networks of a data set, and write a report",
        more=COMPARE,
    )  # fmt: skip
    _training_options(command, "runs/DATASET")

    command = _command(commands, "train", _train, "train one network")
    command.add_argument(
        "--network", choices=models.NETWORKS, default="convolution", metavar="NAME",
        help=f"{', '.join(models.NETWORKS)}; default: convolution",
    )  # fmt: skip
    _training_options(command, "runs/DATASET/NETWORK")

    command = _command(
        commands, "report", _report, "run the student report's study again, and answer it",
        more=REPORT,
    )  # fmt: skip
    _report_options(command)

    command = _command(commands, "evaluate", _evaluate, "accuracy of a trained network")
    command.add_argument(
        "checkpoint", help="a .npz in the folder of a training, or the folder: its best.npz"
    )
    _device_option(command)
    _threads_option(command)

    command = _command(commands, "summary", _summary, "layers, shapes, parameters, multiply-adds")
    _dataset_option(command)
    command.add_argument(
        "--network", choices=models.NETWORKS, metavar="NAME",
        help=f"{', '.join(models.NETWORKS)}; default: the first two",
    )  # fmt: skip

    command = _command(commands, "data", _data_list, "list, fetch or show the data sets")
    actions = command.add_subparsers(title="actions", metavar="<an action>")
    _command(actions, "list", _data_list, "say which data sets are on this machine")
    action = _command(actions, "fetch", _data_fetch, "download data sets, or make the glyphs")
    action.add_argument("names", nargs="+", choices=data.NAMES, metavar="NAME", help=_names())
    action = _command(actions, "show", _data_show, "draw a sheet of samples")
    action.add_argument(
        "dataset", nargs="?", choices=data.NAMES, default="glyphs", metavar="NAME", help=_names()
    )
    action.add_argument("--out", metavar="FILE", help="default: runs/NAME/samples.png")
    action.add_argument("--seed", type=_whole(0), default=0, help="draws the samples; default: 0")
    action.set_defaults(train_images=None)

    command = _command(commands, "gradcheck", _gradcheck, "check the gradients of every layer")
    _device_option(command)
    command.add_argument("--seed", type=_whole(0), default=0, help="default: 0")

    _command(commands, "info", _info, "versions, processor, threads, GPU")
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions and examples as they are written, options beside their explanation."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)


def _command(
    commands, name: str, run: Callable, described: str, more: str = ""
) -> argparse.ArgumentParser:
    sentence = f"{described[0].upper()}{described[1:]}."
    parser = commands.add_parser(
        name, help=described, description=sentence, epilog=more, formatter_class=_Help
    )
    parser.set_defaults(run=run)
    return parser


def _training_options(parser: argparse.ArgumentParser, out: str) -> None:
    _dataset_option(parser)

    def default(name: str) -> str:
        usual = getattr(SCHEDULES["glyphs"], name)
        others = {key: getattr(schedule, name) for key, schedule in SCHEDULES.items()}
        told = [f"{value:g} on {key}" for key, value in others.items() if value != usual]
        return f"default: {', '.join([f'{usual:g}', *told])}"

    option = parser.add_argument
    option("--epochs", type=_whole(1), metavar="N", help=default("epochs"))
    option("--batch-size", type=_whole(1), metavar="N", help=default("batch_size"))
    option("--lr", type=_positive, metavar="RATE", help=f"Adam's learning rate; {default('lr')}")
    option("--seed", type=_whole(0), default=0, metavar="N",
           help="draws weights, dropout and the order of images; default: 0")  # fmt: skip
    option("--train-images", type=_whole(1), metavar="N", help="use so many; default: all")
    option("--out", metavar="FOLDER", help=f"default: {out}")
    option("--resume", action="store_true", help="go on from what the folder holds")
    _device_option(parser)
    _threads_option(parser)


def _report_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--seeds", type=_whole(1), default=3, metavar="N",
           help="train the report's six networks so often; default: 3")  # fmt: skip
    option("--quick", action="store_true",
           help="a tenth of the images, two epochs, one seed: to see it work")  # fmt: skip
    option("--only", metavar="ROW", help="train one row, such as mnist/involution")
    option("--report-pixels", action="store_true",
           help="also feed CIFAR-10 as the report did, by pixels of 0 to 255")  # fmt: skip
    option("--jpeg", action="store_true",
           help="say that the images of CIFAR-10 are JPEG copies")  # fmt: skip
    option("--out", metavar="FOLDER", help="default: runs/report, runs/report-quick")
    option("--device", choices=DEVICES, default="auto", metavar="NAME",
           help="cpu, cuda, or auto (the CPU, and a GPU if there is one); default: auto",
    )  # fmt: skip
    _threads_option(parser)


def _dataset_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", choices=data.NAMES, default="glyphs", metavar="NAME",
                        help=f"{_names()}; default: glyphs")  # fmt: skip


def _device_option(parser: argparse.ArgumentParser) -> None:
    choices = (*DEVICES, "reference")
    parser.add_argument(
        "--device", "--backend", choices=choices, default="cpu", metavar="NAME",
        help=f"{', '.join(choices)} (plain NumPy, slow); default: cpu",
    )  # fmt: skip


def _threads_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=_whole(1), metavar="N", help="default: all cores")


def _names() -> str:
    return ", ".join(data.NAMES)


def _whole(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of at least {least}, got {text!r}"
            )
        return number

    return whole


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number
