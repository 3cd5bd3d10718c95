"""The compare job on a handful of images: what it writes, resumes, refuses and keeps."""

import json
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from scratchnet import CheckpointError, History
from scratchnet.comparison import compare, results_table, train
from scratchnet.data import Dataset, Split
from scratchnet.experiment import (
    SCHEDULES,
    Experiment,
    check_writable,
    load_trained,
    run_experiment,
)
from scratchnet.models import INPUT_SHAPES, OPERATORS
from scratchnet.models.summary import trainable_parameters
from scratchnet.training import evaluate


def tiny(train: int = 96, test: int = 40) -> Dataset:
    """Noise in the shape of glyphs: nothing to learn, quick to train on."""
    rng = np.random.default_rng(0)
    splits = [
        Split(rng.integers(0, 256, (n, 28, 28, 1), dtype=np.uint8), np.arange(n) % 10)
        for n in (train, test)
    ]
    return Dataset(*splits, classes=tuple("0123456789"), name="glyphs")


def experiment(operator: str = "involution", **changes) -> Experiment:
    usual = Experiment("glyphs", operator, 2, 32, 1e-3, 3, "reference")
    return replace(usual, **changes)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "glyphs"
    outcomes = compare([experiment(operator) for operator in OPERATORS], tiny(), folder)
    return folder, outcomes


def test_every_file_is_there_and_small(compared):
    folder, _ = compared
    names = {path.name for path in folder.iterdir()}
    figures = {"curves.png", "confusion.png", "predictions.png", "networks.png"}
    assert names == figures | {"report.md", "results.json", *OPERATORS}
    assert all((folder / name).stat().st_size <= 150_000 for name in figures)
    for operator in OPERATORS:
        kept = {path.name for path in (folder / operator).iterdir()}
        assert kept == {"experiment.json", "best.npz", "last.npz", "history.json"}


def test_results_hold_every_number(compared):
    folder, outcomes = compared
    results = json.loads((folder / "results.json").read_text())
    assert results["seed"] == 3 and results["epochs"] == 2 and results["backend"] == "reference"
    assert results["train_images"] == 96 and results["test_images"] == 40
    assert set(results["versions"]) == {"scratchnet", "python", "numpy", "numba"}
    assert set(results["machine"]) == {"platform", "cpu", "threads", "cores", "blas"}
    assert list(results["networks"]) == list(OPERATORS)
    assert results["interrupted"] is False
    for outcome in outcomes:
        network = results["networks"][outcome.experiment.network]
        assert History.from_dict(
            {"epochs": network["history"], "compile_seconds": 0.0, "interrupted": False}
        ).epochs == (outcome.history.epochs)
        assert network["accuracy"] == np.trace(network["confusion"]) / 40
        assert np.sum(network["confusion"], axis=1).tolist() == [4] * 10
        assert network["training_seconds"] == pytest.approx(outcome.history.training_seconds)
        assert network["compile_seconds"] > 0
        assert network["parameters"] == trainable_parameters(outcome.network)
    assert results["networks"]["involution"]["multiply_adds"] == 19_110


def test_the_report_tells_the_numbers_and_shows_the_figures(compared):
    folder, outcomes = compared
    report = (folder / "report.md").read_text()
    for name in ("curves", "confusion", "predictions", "networks"):
        assert f"]({name}.png)" in report
    for outcome in outcomes:
        assert f"{outcome.history.epochs[-1].val_accuracy:.2%}" in report
        assert f"{trainable_parameters(outcome.network):,}" in report
    assert "--dataset glyphs --epochs 2 --batch-size 32 --lr 0.001 --seed 3" in report
    assert str(folder) not in report


def test_the_same_seed_gives_the_same_numbers(compared, tmp_path):
    _, outcomes = compared
    again = run_experiment(experiment("involution"), tiny(), tmp_path)
    assert [e.loss for e in again.history.epochs] == [e.loss for e in outcomes[1].history.epochs]
    np.testing.assert_array_equal(again.predictions, outcomes[1].predictions)


def test_a_finished_run_is_taken_as_it_is(compared, capsys):
    folder, outcomes = compared
    again = compare([experiment(operator) for operator in OPERATORS], tiny(), folder, resume=True)
    for before, after in zip(outcomes, again, strict=True):
        assert after.history == before.history
        np.testing.assert_array_equal(after.predictions, before.predictions)
    assert capsys.readouterr().out.count("trained before") == 2


def test_more_epochs_go_on_from_what_is_there(tmp_path):
    run_experiment(experiment(epochs=1), tiny(), tmp_path / "parts")
    parts = run_experiment(experiment(), tiny(), tmp_path / "parts", resume=True)
    whole = run_experiment(experiment(), tiny(), tmp_path / "whole")
    for part, unbroken in zip(parts.network.parameters(), whole.network.parameters(), strict=True):
        np.testing.assert_array_equal(part.value, unbroken.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"network": "convolution"}, "network involution, not convolution"),
        ({"seed": 4}, "seed 3, not 4"),
        ({"lr": 0.5}, "lr 0.001, not 0.5"),
        ({"dataset": "mnist"}, "dataset glyphs, not mnist"),
    ],
)
def test_another_run_is_not_resumed(tmp_path, change, told):
    run_experiment(experiment(epochs=1), tiny(), tmp_path)
    with pytest.raises(CheckpointError, match=told):
        run_experiment(experiment(**change), tiny(), tmp_path, resume=True)


def test_a_new_run_leaves_nothing_of_the_old(tmp_path):
    run_experiment(experiment(epochs=1), tiny(), tmp_path)
    with pytest.raises(ValueError, match="lr"):
        run_experiment(experiment(lr=float("nan")), tiny(), tmp_path)
    assert not (tmp_path / "last.npz").exists() and not (tmp_path / "best.npz").exists()


def test_a_checkpoint_becomes_its_network_again(compared):
    folder, outcomes = compared
    found, network = load_trained(folder / "involution" / "last.npz")
    assert found == outcomes[1].experiment
    assert evaluate(network, tiny().test)[1] == outcomes[1].history.epochs[-1].val_accuracy
    assert load_trained(folder / "involution")[0] == found


def test_a_checkpoint_of_another_network_or_of_none_is_refused(compared, tmp_path):
    folder, _ = compared
    with pytest.raises(CheckpointError, match="experiment.json"):
        load_trained(tmp_path / "no.npz")
    for name in ("experiment.json", "best.npz"):
        source = folder / ("convolution" if name == "best.npz" else "involution") / name
        (tmp_path / name).write_bytes(source.read_bytes())
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_trained(tmp_path)
    (tmp_path / "experiment.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_trained(tmp_path)


def test_ctrl_c_keeps_what_was_learned_and_the_report_says_so(tmp_path, monkeypatch):
    from scratchnet import comparison

    line = comparison._epoch_line

    def interrupt(epoch, epochs):
        os.kill(os.getpid(), signal.SIGINT)  # arrives in the training of the next epoch
        return line(epoch, epochs)

    monkeypatch.setattr(comparison, "_epoch_line", interrupt)
    both = [experiment(operator, epochs=3) for operator in reversed(OPERATORS)]
    (outcome,) = compare(both, tiny(40), tmp_path)
    assert outcome.history.interrupted and 1 <= len(outcome.history.epochs) < 3
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["interrupted"] and list(results["networks"]) == ["involution"]
    assert "Stopped before the end" in (tmp_path / "report.md").read_text()

    monkeypatch.setattr(comparison, "_epoch_line", line)
    resumed = compare(both, tiny(40), tmp_path, resume=True)
    assert [len(o.history.epochs) for o in resumed] == [3, 3]
    assert "Stopped" not in (tmp_path / "report.md").read_text()


def test_a_run_stopped_in_its_first_epoch_still_reports(tmp_path, monkeypatch):
    from scratchnet import training

    step = training._train_step

    def interrupt(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return step(*args)

    warm_up = training.warm_up
    monkeypatch.setattr(
        training,
        "warm_up",
        lambda *args: (warm_up(*args), monkeypatch.setattr(training, "_train_step", interrupt))[0],
    )
    (outcome,) = compare([experiment()], tiny(), tmp_path)
    assert outcome.history.interrupted and not outcome.history.epochs
    assert not (tmp_path / "curves.png").exists()
    report = (tmp_path / "report.md").read_text()
    assert "No epoch was finished" in report and "curves.png" not in report


def test_the_table_aligns_and_has_a_markdown_form(compared):
    _, outcomes = compared
    histories = {o.experiment.network: o.history for o in outcomes}
    networks = {o.experiment.network: o.network for o in outcomes}
    table = results_table(histories, networks).splitlines()
    assert len({len(line) for line in table}) == 1 and len(table[0]) <= 80
    assert "34,826" in table[2] and "544" in table[3]
    markdown = results_table(histories, networks, markdown=True).splitlines()
    assert len({line.count("|") for line in markdown}) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError) as caught:
        check_writable(blocked / "runs")
    assert caught.value.filename == str(blocked / "runs")


def test_every_data_set_has_a_schedule():
    assert set(SCHEDULES) == set(INPUT_SHAPES)
    assert {name: s.epochs for name, s in SCHEDULES.items()} == {
        "glyphs": 10, "mnist": 15, "fashion-mnist": 10, "cifar10": 10,
    }  # fmt: skip
    assert [s.batch_size for s in SCHEDULES.values()] == [128, 128, 128, 256]


def test_training_again_keeps_the_run_before(tmp_path):
    outcome = train(experiment(), tiny(), tmp_path)
    for seed in (1, 2):
        train(replace(experiment(), seed=seed), tiny(), tmp_path)
    kept, network = load_trained(tmp_path / "previous-1" / "last.npz")
    assert kept == experiment()
    for name, value in outcome.network.state().items():
        np.testing.assert_array_equal(network.state()[name], value)
    assert load_trained(tmp_path / "previous-2")[0].seed == 1
    assert load_trained(tmp_path)[0].seed == 2


def test_resuming_with_fewer_epochs_changes_nothing(tmp_path):
    train(experiment(), tiny(), tmp_path)
    train(replace(experiment(), epochs=1), tiny(), tmp_path, resume=True)
    assert load_trained(tmp_path)[0] == experiment()


def test_comparing_again_keeps_the_report_before(tmp_path):
    first = compare([experiment()], tiny(), tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert not (tmp_path / "previous-1").exists()
    compare([replace(experiment(), seed=1)], tiny(), tmp_path)
    assert (tmp_path / "previous-1" / "report.md").read_text() == report
    assert (tmp_path / "previous-1" / "curves.png").exists()
    assert (tmp_path / "report.md").read_text() != report
    assert first[0].history.epochs


def test_a_history_without_checkpoints_is_kept(tmp_path):
    train(experiment(), tiny(), tmp_path)
    for name in ("best.npz", "last.npz"):
        (tmp_path / name).unlink()
    history = (tmp_path / "history.json").read_text()
    train(replace(experiment(), seed=1), tiny(), tmp_path)
    assert (tmp_path / "previous-1" / "history.json").read_text() == history


def test_what_was_trained_with_two_softmaxes_is_evaluated_so(tmp_path):
    outcome = run_experiment(replace(experiment(), softmax=2), tiny(), tmp_path)
    kept, network = load_trained(tmp_path / "last.npz")
    loss = evaluate(network, tiny().test, loss=kept.loss())[0]
    assert loss == pytest.approx(outcome.history.epochs[-1].val_loss, rel=1e-6)
    assert loss > math.log(1 + 9 / math.e)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": "foo"}, "its training is 'foo'"),
        ({"lr": "x"}, "lr must be a number"),
        ({"backend": "tpu"}, "its backend is 'tpu'"),
        ({"softmax": 3}, "its softmax is 3"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ],
)
def test_a_damaged_experiment_is_told(change, message, tmp_path):
    train(experiment(), tiny(), tmp_path)
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_trained(tmp_path)
