"""The command as a user meets it: help, refusals, exit codes, and what lands on disk."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

from scratchnet import cli, data, models
from scratchnet.data import Dataset, Split

QUICK = ["--device", "reference", "--epochs", "1", "--train-images", "40"]


@pytest.fixture(autouse=True)
def small_world(tmp_path, monkeypatch):
    """A folder of its own, and glyphs that are made in no time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCRATCHNET_DATA", str(tmp_path / "data"))

    def load(name, root=None, *, train=None, test=None):
        rng = np.random.default_rng(0)
        shape = models.INPUT_SHAPES[name]
        test_split, train_split = (
            Split(rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 10)
            for n in (30, train or 60)
        )
        return Dataset(train_split, test_split, classes=tuple("0123456789"), name=name)

    monkeypatch.setattr(data, "load", load)


def environment() -> dict[str, str]:
    """For a process of its own, which need not find an installed package."""
    return os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(cli.__file__))}


def refused(capsys, *argv: str) -> str:
    """What is told of arguments that are no good: exit code 2, after the usage."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(argv))
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def failed(capsys, *argv: str) -> str:
    """What is told of an error: exit code 1, one line, no traceback."""
    assert cli.main(list(argv)) == 1
    told = capsys.readouterr().err
    assert told.startswith("scratchnet: ") and told.count("\n") == 1
    return told


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["compare", "--help"],
        ["train", "--help"],
        ["evaluate", "--help"],
        ["summary", "--help"],
        ["data", "--help"],
        ["data", "show", "--help"],
        ["gradcheck", "--help"],
        ["info", "--help"],
    ],
)
def test_help_reads_well(capsys, argv, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert all(len(line) <= 100 for line in told.splitlines())
    assert "None" not in told and "%(" not in told


def test_the_first_help_names_every_command_and_shows_examples(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    told = capsys.readouterr().out
    for command in (
        "compare",
        "train",
        "report",
        "evaluate",
        "summary",
        "data",
        "gradcheck",
        "info",
    ):
        assert re.search(rf"^    {command} +\w", told, re.M)
    examples = re.findall(r"python -m scratchnet ?(.*?)(?:  |$)", told, re.M)
    assert len(examples) >= 4
    for example in examples:
        words = example.split() or ["compare"]
        cli._parser().parse_args(words)


@pytest.mark.parametrize("page", ["README.md", "tutorial.md", "examples/report/report.md"])
def test_the_commands_that_our_pages_show_can_be_typed(page):
    text = (Path(__file__).resolve().parents[1] / page).read_text(encoding="utf-8")
    shown = re.findall(r"python -m scratchnet([^`#|&]*?)(?:[`#|&]|\n\n|\n    )", text)
    assert shown
    for words in shown:
        if "--help" not in words:
            cli._parser().parse_args(words.split() or ["compare"])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["frobnicate"], "'compare', 'train', 'report', 'evaluate'"),
        (["--dataset", "imagenet"], "'glyphs', 'mnist', 'fashion-mnist', 'cifar10'"),
        (["train", "--network", "transformer"], "'convolution', 'involution'"),
        (["--device", "tpu"], "'cpu', 'cuda', 'auto', 'reference'"),
        (["--lr", "nan"], "must be a number above 0, got 'nan'"),
        (["--lr", "fast"], "must be a number above 0, got 'fast'"),
        (["--epochs", "0"], "must be a whole number of at least 1, got '0'"),
        (["--batch-size", "1.5"], "must be a whole number of at least 1, got '1.5'"),
        (["--seed", "-1"], "must be a whole number of at least 0, got '-1'"),
        (["evaluate"], "checkpoint"),
        (["data", "fetch", "svhn"], "'glyphs', 'mnist'"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_ones(capsys, argv, told):
    assert told in refused(capsys, *argv)


def test_without_a_command_it_compares(capsys, tmp_path):
    assert cli.main(QUICK) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", told.out)  # plain lines off a terminal
    lines = told.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("  epoch 1/1  loss ") for line in lines) == 2
    assert lines[-1] == "written: runs/glyphs/report.md"
    folder = tmp_path / "runs" / "glyphs"
    results = json.loads((folder / "results.json").read_text())
    assert list(results["networks"]) == ["convolution", "involution"]
    assert results["train_images"] == 40


def test_train_then_evaluate_then_resume(capsys, tmp_path):
    argv = ["train", "--network", "involution", *QUICK]
    assert cli.main(argv) == 0
    folder = tmp_path / "runs" / "glyphs" / "involution"
    names = {"best.npz", "last.npz", "experiment.json", "history.json", "curves.png"}
    assert {path.name for path in folder.iterdir()} == names
    trained = re.search(r"validation +([\d.]+%)", capsys.readouterr().out)[1]
    for what in (folder, folder / "last.npz"):
        assert cli.main(["evaluate", str(what)]) == 0
        assert f"accuracy {trained}" in capsys.readouterr().out
    argv[argv.index("--epochs") + 1] = "2"
    assert cli.main([*argv, "--resume"]) == 0
    told = capsys.readouterr().out
    assert "epoch 2/2" in told and "epoch 1/2" not in told


def test_an_unwritable_folder_is_told_before_anything_is_loaded(capsys, tmp_path, monkeypatch):
    def too_late(*args, **kwargs):
        raise AssertionError("the data was loaded first")

    monkeypatch.setattr(data, "load", too_late)
    (tmp_path / "file").write_text("")
    for command in (["compare"], ["train"], ["data", "show"]):
        out = "file/runs/sheet.png" if command[0] == "data" else "file/runs"
        assert "file/runs: Not a directory" in failed(capsys, *command, "--out", out)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told(capsys, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "locked: Permission denied" in failed(capsys, "--out", "locked")


def test_wrong_checkpoints_are_refused(capsys, tmp_path):
    assert "there is no" in failed(capsys, "evaluate", "nowhere")
    cli.main(["train", "--network", "involution", *QUICK])
    capsys.readouterr()
    folder = tmp_path / "runs" / "glyphs" / "involution"
    told = failed(
        capsys, "train", "--network", "convolution", *QUICK, "--out", str(folder), "--resume"
    )
    assert "network involution, not convolution" in told
    (folder / "best.npz").write_bytes(b"PK\x03\x04 half a file")
    assert "best.npz is damaged" in failed(capsys, "evaluate", str(folder))


def test_a_loss_that_is_not_finite_is_one_sentence(capsys):
    argv = ["train", "--network", "convolution", *QUICK, "--lr", "1e30", "--epochs", "3"]
    assert "loss became" in failed(capsys, *argv)


def test_errors_of_the_data_and_of_the_disk_are_one_sentence(capsys, monkeypatch):
    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device", "runs/glyphs/last.npz")

    def no_memory(*args, **kwargs):
        raise MemoryError("Unable to allocate 73 GiB")

    def no_data(*args, **kwargs):
        raise data.DataError("MNIST is not in there: put it there")

    def busy(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "compare", no_space)
    told = failed(capsys, *QUICK)
    assert told == "scratchnet: runs/glyphs/last.npz: No space left on device\n"
    monkeypatch.setattr(cli, "compare", no_memory)
    told = failed(capsys, *QUICK)
    assert told == "scratchnet: not enough memory: Unable to allocate 73 GiB\n"
    monkeypatch.setattr(data, "load", no_data)
    assert "put it there" in failed(capsys, *QUICK)
    monkeypatch.setattr(data, "load", busy)
    assert cli.main(QUICK) == 130


def test_too_many_threads_are_refused(capsys):
    assert "threads must be 1 to" in failed(capsys, "--threads", "4096")


def test_a_missing_gpu_is_told_before_anything_is_loaded(capsys, monkeypatch):
    from scratchnet.backends import BackendError

    def none(device):
        raise BackendError("the cuda backend needs an NVIDIA GPU")

    monkeypatch.setattr(cli, "choose_backend", none)
    assert "needs an NVIDIA GPU" in failed(capsys, "--device", "cuda")


def test_summary_and_data_and_info(capsys, tmp_path):
    assert cli.main(["summary", "--dataset", "mnist"]) == 0
    told = capsys.readouterr().out
    assert "34,826" in told and "544" in told
    assert cli.main(["data"]) == 0
    told = capsys.readouterr().out
    assert "glyphs" in told and "data fetch cifar10" in told
    assert cli.main(["data", "fetch", "mnist"]) == 0
    assert "60 training and 30 test images of 28 x 28 x 1" in capsys.readouterr().out
    assert cli.main(["data", "show", "cifar10"]) == 0
    assert (tmp_path / "runs" / "cifar10" / "samples.png").stat().st_size < 150_000
    capsys.readouterr()
    assert cli.main(["info"]) == 0
    told = capsys.readouterr().out
    for word in ("numpy", "cpu", "threads", "blas", "gpu"):
        assert word in told


def test_gradcheck_passes_and_fails_loudly(capsys, monkeypatch):
    from scratchnet.backends import reference

    assert cli.main(["gradcheck", "--device", "reference"]) == 0
    assert re.search(r"(\d+) of \1 have the right gradients", capsys.readouterr().out)
    right = reference.relu_backward
    monkeypatch.setattr(reference, "relu_backward", lambda dy, y: -right(dy, y))
    assert cli.main(["gradcheck", "--device", "reference"]) == 1
    assert re.search(r"^ReLU +WRONG: the gradient of x", capsys.readouterr().out, re.M)


def test_commands_that_draw_nothing_do_not_import_matplotlib():
    code = "import sys, scratchnet.cli; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal of POSIX")
def test_a_terminal_sees_life_and_ctrl_c_ends_with_a_way_on(tmp_path):
    """The real command on a terminal: something is written all along, also while compiling."""
    controller, terminal = pty.openpty()
    argv = [sys.executable, "-m", "scratchnet", "train", "--network", "involution", *QUICK]
    argv[argv.index("--epochs") + 1] = "100000"
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    process = subprocess.Popen(
        argv, stdin=terminal, stdout=terminal, stderr=terminal, env=environment(), cwd=tmp_path
    )
    os.close(terminal)
    written, signalled = b"", False
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ready, _, _ = select.select([controller], [], [], 1)
        if ready:
            try:
                written += os.read(controller, 65536)
            except OSError:  # the other end is closed
                break
        if b"epoch      2/" in written and not signalled:
            process.send_signal(signal.SIGINT)
            signalled = True
    assert process.wait(timeout=30) == 130
    os.close(controller)
    told = written.decode()
    assert "Traceback" not in told
    assert "compiling 00:0" in told and "images/s" in told
    assert "to go on: python -m scratchnet train --network involution" in told
    assert told.rstrip().endswith("--resume")
