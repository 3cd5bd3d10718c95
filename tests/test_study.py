"""The report's study on a handful of images: its rows, what it writes, keeps and refuses."""

import copy
import json
import math
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scratchnet import CheckpointError, comparison
from scratchnet.data import Dataset, Split
from scratchnet.experiment import PIXELS
from scratchnet.losses import SoftmaxCrossEntropy, SoftmaxTwiceCrossEntropy
from scratchnet.models import INPUT_SHAPES, NETWORKS, OPERATORS, compact_involution
from scratchnet.study import (
    DATASETS,
    Row,
    quick_share,
    run_study,
    runs,
    study_rows,
    write_study_report,
)
from scratchnet.study.figures import kernel_sums
from scratchnet.study.results import Study, gap, mean_history
from scratchnet.study.runs import MATCHED


def tiny(name: str) -> Dataset:
    rng = np.random.default_rng(0)
    splits = [
        Split(rng.integers(0, 256, (n, *INPUT_SHAPES[name]), dtype=np.uint8), np.arange(n) % 10)
        for n in (40, 20)
    ]
    return Dataset(*splits, classes=tuple("abcdefghij"), name=name)


def rows(seeds: int = 1) -> list[Row]:
    return study_rows(seeds, raw_pixels=True, quick=True, devices=["cpu"])


def parameters(network) -> int:
    return sum(p.value.size for p in network.parameters() if p.trainable)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A whole quick study with two seeds, its layers timed for an instant."""
    folder = tmp_path_factory.mktemp("runs") / "report"
    whole = pytest.MonkeyPatch()
    times = runs.time_layers
    whole.setattr(runs, "time_layers", lambda backends: times(backends, seconds=0.0))
    settings = {"quick": True, "jpeg": True, "command": "python -m scratchnet report --quick"}
    results = run_study(rows(2), folder, tiny, settings=settings)
    whole.undo()
    path = write_study_report(rows(2), results, folder, {name: tiny(name) for name in DATASETS})
    return folder, results, path.read_text(encoding="utf-8")


def test_the_rows_are_the_reports_and_those_that_answer_it():
    names = [row.name for row in rows()]
    assert len(names) == len(set(names))
    for dataset in DATASETS:
        for network in (*OPERATORS, "attention", *MATCHED, "compact-involution"):
            assert f"{dataset}/{network}" in names
    full = {row.name: row for row in study_rows(3, raw_pixels=False, quick=False, devices=["cpu"])}
    assert not any("raw-pixels" in name for name in full)
    assert [full[f"{name}/involution"].experiment.epochs for name in DATASETS] == [15, 10, 10]
    assert [full[f"{name}/involution"].experiment.batch_size for name in DATASETS] == [
        128,
        128,
        256,
    ]
    assert [run.seed for run in full["mnist/convolution"].runs()] == [0, 1, 2]
    assert full["cifar10/compact-involution"].experiment.epochs == 20
    both = study_rows(1, raw_pixels=False, quick=True, devices=["cpu", "cuda"])
    on_gpu = [row.name for row in both if row.experiment.backend == "cuda"]
    assert on_gpu == [f"{dataset}/{operator}" for dataset in DATASETS for operator in OPERATORS]


@pytest.mark.parametrize("dataset", DATASETS)
def test_matched_networks_are_of_one_size(dataset):
    for one, other in (("small-convolution", "involution"), ("wide-involution", "convolution")):
        a, b = (NETWORKS[name](dataset) for name in (one, other))
        assert abs(parameters(a) / parameters(b) - 1) < 1 / 8
        shape = INPUT_SHAPES[dataset]
        assert abs(a.flops(shape) / b.flops(shape) - 1) < 1 / 8
    assert parameters(compact_involution(dataset)) <= parameters(NETWORKS["convolution"](dataset))


def test_every_row_is_in_the_results_with_its_seeds(done):
    _, results, _ = done
    assert set(results["rows"]) == {row.name for row in rows(2)}
    for row in rows(2):
        outcomes = results["rows"][row.name]["cpu"]
        assert [o["experiment"]["seed"] for o in outcomes] == list(range(row.seeds))
        for outcome in outcomes:
            assert outcome["accuracy"] == np.trace(outcome["confusion"]) / 20
            assert len(outcome["history"]) == 2
    raw = results["rows"]["cifar10/convolution/raw-pixels"]["cpu"][0]
    assert raw["experiment"]["pixels"] == "0 to 255"
    assert results["rows"]["mnist/involution/softmax-twice"]["cpu"][0]["experiment"]["softmax"] == 2
    assert json.loads((done[0] / "results.json").read_text()) == results


def test_the_report_holds_every_section_and_figure_and_no_path(done):
    folder, _, text = done
    for heading in (
        "The answer", "Table 1", "Figures 2 to 4", "Figures 5 to 7", "The open question",
        "At equal parameters", "The report's other claims", "What an involution learns", "Settings",
    ):  # fmt: skip
        assert f"## {heading}" in text
    linked = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert sorted(linked) == sorted(path.name for path in folder.glob("*.png"))
    assert len(linked) == 3 * 3 + 2
    assert all((folder / name).stat().st_size <= 150_000 for name in linked)
    assert str(folder) not in text and "/tmp" not in text
    assert "CIFAR-10 (JPEG)" in text and "CIFAR-10, " not in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_numbers_of_the_report_are_those_of_the_results(done):
    _, results, text = done
    asked = Study(results)
    values = [100 * o["accuracy"] for o in results["rows"]["mnist/involution"]["cpu"]]
    told = f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    assert asked.accuracy("mnist/involution") == told
    assert f"| MNIST | involution | 544 | {told} | 88.82 |" in text
    last = [o["history"][-1] for o in results["rows"]["mnist/involution"]["cpu"]]
    expected = 100 * np.mean([e["accuracy"] - e["val_accuracy"] for e in last])
    assert gap(asked.outcomes("mnist/involution")) == pytest.approx(expected)
    mean = mean_history(asked.outcomes("mnist/involution"))
    assert mean.epochs[-1].loss == pytest.approx(np.mean([e["loss"] for e in last]))
    layer = results["profiles"]["cpu"]["single"][0]
    assert layer["forward"]["multiply_adds"] == 64 * 32 * 32 * 9 * 16 * 16
    assert layer["backward"]["multiply_adds"] == 2 * layer["forward"]["multiply_adds"]


def test_a_gpu_has_columns_of_its_own(done, tmp_path):
    results = copy.deepcopy(done[1])
    outcomes = copy.deepcopy(results["rows"]["mnist/involution"]["cpu"])
    for accuracy, outcome in zip((0.5, 0.7), outcomes, strict=True):
        outcome |= {"accuracy": accuracy, "training_seconds": 3.25}
        outcome["machine"] |= {"gpu": "a GPU"}
    results["rows"]["mnist/involution"]["cuda"] = outcomes
    text = write_study_report(rows(2), results, tmp_path, {}).read_text(encoding="utf-8")
    line, *_ = re.findall(r"^\| MNIST \| involution \| 544 .*", text, re.M)
    assert line.endswith("| 60.00 ± 14.14 | 3.2 | 73.35 |")
    other, *_ = re.findall(r"^\| MNIST \| convolution \| 34,826 .*", text, re.M)
    assert other.endswith("| – | – | 65.26 |")
    assert "| GPU: accuracy, % | s | theirs |" in text
    assert "a GPU: MNIST, involution" in text


def test_a_gpu_is_judged_by_its_trainings(done, tmp_path):
    results = copy.deepcopy(done[1])
    results["profiles"]["cuda"] = results["profiles"]["cpu"]
    for convolution, dataset in enumerate(DATASETS, 2):
        for operator, seconds in (("convolution", convolution), ("involution", 2)):
            (outcome,) = copy.deepcopy(results["rows"]["mnist/involution"]["cpu"][:1])
            outcome["training_seconds"] = seconds
            results["rows"].setdefault(f"{dataset}/{operator}", {})["cuda"] = [outcome]
    text = write_study_report(rows(2), results, tmp_path, {}).read_text(encoding="utf-8")
    answer = "Convolution training over involution training: 1.0 times on MNIST, 1.5 times on"
    assert f"- **The network** (cuda). {answer} Fashion-MNIST, 2.0 times on CIFAR-10" in text
    assert "**The multiply-add** (cuda)" not in text
    assert "started from Python" in text


def test_finished_runs_are_taken_as_they_are(done, capsys):
    folder, results, _ = done
    again = run_study(rows(2), folder, tiny, settings=results["settings"])
    assert again["rows"] == results["rows"] and again["profiles"] == results["profiles"]
    assert capsys.readouterr().out.count("trained before") == sum(row.seeds for row in rows(2))


def test_one_row_alone_and_again_to_the_last_digit(done, tmp_path, capsys):
    _, results, _ = done
    alone = run_study(rows(2), tmp_path, tiny, only="mnist/involution")
    assert list(alone["rows"]) == ["mnist/involution"] and alone["profiles"] is None
    for ours, theirs in zip(
        alone["rows"]["mnist/involution"]["cpu"],
        results["rows"]["mnist/involution"]["cpu"],
        strict=True,
    ):
        assert ours["confusion"] == theirs["confusion"]
        assert [e["loss"] for e in ours["history"]] == [e["loss"] for e in theirs["history"]]
    text = write_study_report(rows(2), alone, tmp_path, {}).read_text(encoding="utf-8")
    assert "At equal parameters" not in text and "The open question" not in text
    assert "| MNIST | convolution | – | – |" in text
    with pytest.raises(ValueError, match="--only must be one of mnist/convolution, .* got 'mnist'"):
        run_study(rows(), tmp_path, tiny, only="mnist")


def test_a_study_that_is_stopped_goes_on_to_the_same_bits(done, tmp_path, monkeypatch):
    line = comparison._epoch_line

    def interrupt(epoch, epochs):
        os.kill(os.getpid(), signal.SIGINT)  # arrives in the training of the next epoch
        return line(epoch, epochs)

    monkeypatch.setattr(comparison, "_epoch_line", interrupt)
    stopped = run_study(rows(2), tmp_path, tiny, only="mnist/convolution")
    assert stopped["interrupted"] and stopped["rows"] == {}
    text = write_study_report(rows(2), stopped, tmp_path, {}).read_text(encoding="utf-8")
    assert "Stopped before the end" in text
    monkeypatch.setattr(comparison, "_epoch_line", line)
    resumed = run_study(rows(2), tmp_path, tiny, only="mnist/convolution")
    assert not resumed["interrupted"]
    name = "mnist/convolution"
    for ours, theirs in zip(
        resumed["rows"][name]["cpu"], done[1]["rows"][name]["cpu"], strict=True
    ):
        assert ours["confusion"] == theirs["confusion"]


def test_other_settings_in_the_same_folder_are_refused(done):
    folder, _, _ = done
    changed = [replace(row, experiment=replace(row.experiment, lr=0.5)) for row in rows()]
    with pytest.raises(ValueError, match="holds a run with lr 0.001, not 0.5"):
        run_study(changed, folder, tiny, only="mnist/involution")


def test_a_quick_study_sees_a_tenth_of_the_images():
    few = quick_share(tiny("mnist"))
    assert (len(few.train), len(few.test)) == (4, 2)
    np.testing.assert_array_equal(few.train.images, tiny("mnist").train.images[:4])


def test_kernel_sums_are_those_of_the_first_involution():
    x = np.random.default_rng(0).random((2, *INPUT_SHAPES["mnist"]), np.float32)
    network = NETWORKS["involution"]("mnist")
    expected = network.layers[0].kernels(x).sum(axis=(4, 5))
    np.testing.assert_array_equal(kernel_sums(network, x), expected)
    assert kernel_sums(compact_involution("mnist"), x).shape == (2, 14, 14, 1)
    with pytest.raises(ValueError, match="there is no involution"):
        kernel_sums(NETWORKS["convolution"]("mnist"), x)


def test_softmax_twice_by_finite_differences():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((5, 4)), rng.integers(4, size=5)
    loss = SoftmaxTwiceCrossEntropy().to("reference")
    loss.forward(logits, labels)
    gradient, direction, eps = loss.backward(), rng.standard_normal((5, 4)), 6e-6
    high, low = (loss.forward(logits + sign * eps * direction, labels) for sign in (1, -1))
    np.testing.assert_allclose((gradient * direction).sum(), (high - low) / (2 * eps), rtol=1e-6)


def test_softmax_twice_cannot_fall_below_its_floor():
    logits = 50 * np.eye(10)
    loss = SoftmaxTwiceCrossEntropy().to("reference")
    assert loss.forward(logits, np.arange(10)) == pytest.approx(math.log(1 + 9 / math.e))
    assert SoftmaxCrossEntropy().to("reference").forward(logits, np.arange(10)) < 1e-12


def test_pixels_are_what_they_are_called():
    for name, how in PIXELS.items():
        full = {"mean": 0.0, "std": 1.0} | how
        ends = [(p * full["scale"] - full["mean"]) / full["std"] for p in (0, 255)]
        assert name == f"{ends[0]:g} to {ends[1]:g}"


def test_a_quick_outcome_is_not_taken_for_a_full_one(tmp_path):
    name = "mnist/involution"
    quick = run_study(rows(), tmp_path, tiny, only=name)
    assert quick["rows"]
    full = study_rows(1, raw_pixels=False, quick=False, devices=["cpu"])
    assert runs._outcomes(full, tmp_path) == {}
    larger = Dataset(*(Split(np.tile(s.images, (2, 1, 1, 1)), np.tile(s.labels, 2))
                       for s in (tiny("mnist").train, tiny("mnist").test)),
                     classes=tuple("abcdefghij"), name="mnist")  # fmt: skip
    for _ in range(2):  # the first try must leave nothing that the second takes for its own
        with pytest.raises(CheckpointError, match="training_images 40, not 80"):
            run_study(full, tmp_path, lambda name: larger, only=name)
    assert run_study(rows(), tmp_path, tiny, only=name)["rows"] == quick["rows"]


def test_a_damaged_outcome_is_named(tmp_path):
    name = "mnist/involution"
    run_study(rows(), tmp_path, tiny, only=name)
    path = tmp_path / name / "cpu-0" / "outcome.json"
    path.write_text('{"experiment": ', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"outcome\.json is damaged"):
        run_study(rows(), tmp_path, tiny, only=name)


def test_runs_of_another_machine_are_told(done, tmp_path):
    _, results, report = done
    settings = report[report.index("## Settings") :]
    assert settings.count("threads of") == 1
    results = copy.deepcopy(results)
    results["rows"]["mnist/convolution"]["cpu"][1]["machine"]["cpu"] = "Abacus"
    changed = write_study_report(rows(2), results, tmp_path, {}).read_text("utf-8")
    assert re.search(r"^- \d+ of \d+ threads of Abacus, .*: MNIST, convolution$", changed, re.M)


def test_readme_and_tutorial_quote_the_report_as_it_is():
    root = Path(__file__).parents[1]
    readme, tutorial = ((root / name).read_text("utf-8") for name in ("README.md", "tutorial.md"))
    study = Study(json.loads((root / "examples/report/results.json").read_text("utf-8")))
    tutorial = " ".join(tutorial.split())
    compact = []
    for dataset in DATASETS:
        rows = [f"{dataset}/{network}" for network in (*OPERATORS, runs.COMPACT)]
        cells = [f"{study.accuracy(row)} %, {study.parameters(row):,} parameters" for row in rows]
        assert f"| {' | '.join([study.title(dataset), *cells])} |" in readme
        twins = [f"{study.accuracy(row)} %" for row in rows[:2]]
        assert " and ".join(twins) in tutorial
        compact.append(study.accuracy(rows[2]))
    assert f"{compact[0]}, {compact[1]} and {compact[2]} %" in tutorial
