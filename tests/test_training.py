"""The loop: it learns, stops cleanly, resumes to the bit, and says what is wrong."""

import signal
import tempfile
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchnet import (
    SGD,
    Adam,
    AdamW,
    BatchNorm,
    CheckpointError,
    Conv2D,
    CosineSchedule,
    Dense,
    Dropout,
    Flatten,
    History,
    Involution2D,
    MaxPool2D,
    ReLU,
    Residual,
    Sequential,
    SoftmaxCrossEntropy,
    TrainingDiverged,
    evaluate,
    fit,
    load_checkpoint,
    load_model,
    predict,
    training,
)
from scratchnet.backends import BACKENDS
from scratchnet.data import DataError, RandomShift, Split
from scratchnet.training import confusion_matrix

CLASSES = 3


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def easy_split(N, seed=0):
    """Noise, with a bright square whose corner tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=N)
    images = rng.integers(0, 60, (N, 8, 8, 2), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 5 * (label // 2), 5 * (label % 2)
        image[row : row + 3, column : column + 3] += 150
    return Split(images, labels)


TRAIN, VALIDATION = easy_split(40), easy_split(21, seed=1)


def network(backend="reference", seed=0):
    """Every kind of memory: weights, running statistics, dropout's generator."""
    rng = np.random.default_rng(seed)
    return Sequential(
        Involution2D(2, 3, rng=rng),
        Conv2D(2, 4, 3, padding="same", rng=rng),
        ReLU(),
        MaxPool2D(2),
        Residual(Sequential(Conv2D(4, 4, 1, bias=False, rng=rng), BatchNorm(4, momentum=0.9))),
        Flatten(),
        Dropout(0.2, rng=rng),
        Dense(64, CLASSES, rng=rng),
    ).to(backend)


def train(model, optimizer=None, **settings):
    """fit with this file's data and settings, 3 steps an epoch."""
    settings = {"epochs": 3, "batch_size": 16, "seed": 5} | settings
    optimizer = optimizer or Adam(model.parameters(), 0.01)
    return fit(model, TRAIN, VALIDATION, optimizer=optimizer, **settings)


def snapshot(model):
    return {name: value.copy() for name, value in model.state().items()}


def same_state(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def numbers(history):
    """What a history says, without what a clock measured."""
    clocked = {"seconds", "val_seconds", "images_per_second"}
    epochs = history.to_dict()["epochs"]
    return [{key: value for key, value in e.items() if key not in clocked} for e in epochs]


class Interrupting:
    """An augmentation during which Ctrl-C is pressed, at these batches, counted from 0."""

    def __init__(self, *batches, presses=1):
        self.batches = batches
        self.presses = presses
        self.count = 0
        self.shift = RandomShift(1)

    def __call__(self, images, rng):
        if self.count in self.batches:
            for _ in range(self.presses):
                signal.raise_signal(signal.SIGINT)
        self.count += 1
        return self.shift(images, rng)


def test_it_learns_an_easy_task(backend):
    model = network(backend)
    history = train(model, epochs=12)
    assert history.epochs[-1].loss < 0.5 * history.epochs[0].loss
    assert history.epochs[-1].val_accuracy > 0.7
    loss, accuracy = evaluate(model, VALIDATION)
    assert (loss, accuracy) == pytest.approx(
        (history.epochs[-1].val_loss, history.epochs[-1].val_accuracy)
    )


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.05, 0.9, nesterov=True), AdamW])
def test_other_optimizers_lower_the_loss_too(make):
    model = network()
    history = train(model, make(model.parameters()), epochs=6)
    assert history.epochs[-1].loss < history.epochs[0].loss


def test_the_history_counts_each_image_once():
    model = network()
    history = train(model, epochs=2)
    assert [epoch.epoch for epoch in history.epochs] == [1, 2]
    for epoch in history.epochs:
        assert 0 <= epoch.accuracy <= 1
        assert epoch.accuracy * len(TRAIN) == pytest.approx(round(epoch.accuracy * len(TRAIN)))
        assert epoch.images_per_second == pytest.approx(len(TRAIN) / epoch.seconds)
        assert epoch.seconds > 0 and epoch.val_seconds > 0 and epoch.lr == 0.01
    assert history.training_seconds == sum(epoch.seconds for epoch in history.epochs)
    assert history.compile_seconds > 0 and not history.interrupted
    assert history.best is max(history.epochs, key=lambda epoch: epoch.val_accuracy)


def test_the_loss_of_an_epoch_is_the_mean_over_its_images():
    """With a learning rate of 0 and no dropout, it is what one batch of everything gives."""
    rng = np.random.default_rng(0)
    model = Sequential(Flatten(), Dense(128, CLASSES, rng=rng)).to("reference")
    history = fit(model, TRAIN, epochs=1, batch_size=16, optimizer=SGD(model.parameters(), 0.0))
    logits = predict(model, TRAIN)
    expected = SoftmaxCrossEntropy().to("reference").forward(logits, TRAIN.labels)
    assert history.epochs[0].loss == pytest.approx(expected, rel=1e-5)
    assert history.epochs[0].accuracy == (logits.argmax(axis=1) == TRAIN.labels).mean()
    assert history.epochs[0].val_loss is None and history.best is None


def test_history_round_trip(tmp_path):
    history = train(network(), epochs=2)
    path = history.save(tmp_path / "new" / "history.json")
    assert History.load(path) == history
    assert [p.name for p in path.parent.iterdir()] == ["history.json"]
    without = fit(
        (model := network()), TRAIN, epochs=1, batch_size=16, optimizer=Adam(model.parameters())
    )
    assert History.load(without.save(path)) == without


def test_same_seed_same_bits(backend):
    def run(seed, shift=1):
        model = network(backend)
        history = train(model, seed=seed, augment=RandomShift(shift))
        return snapshot(model), numbers(history)

    first, second, other = run(5), run(5), run(6)
    same_state(first[0], second[0])
    assert first[1] == second[1]
    assert (first[0]["1.weight"] != other[0]["1.weight"]).any()


def test_warming_up_leaves_no_trace():
    model = network()
    optimizer = Adam(model.parameters())
    before, generator = snapshot(model), str(model.generators()[0].bit_generator.state)
    seconds = training.warm_up(model, TRAIN, SoftmaxCrossEntropy().to("reference"), optimizer, {})
    assert seconds > 0
    same_state(before, snapshot(model))
    assert str(model.generators()[0].bit_generator.state) == generator
    assert optimizer.steps == 0 and not optimizer.state()["m.0"].any()
    assert all(p.grad is None for p in model.parameters())


def unbroken(backend, make):
    model = network(backend)
    optimizer = make(model.parameters())
    history = train(model, optimizer, augment=RandomShift(1), schedule=CosineSchedule(0.05, 9, 2))
    return model, optimizer, history


def broken(backend, make, batches, run_dir):
    """Interrupted during each of these batches, each time resumed in new objects."""
    done = 0
    for batch in [*sorted(batches), None]:
        model = network(backend, seed=1 if done else 0)
        optimizer = make(model.parameters())
        # A resumed epoch draws its batches from the first on, to reach the same random state.
        skipped = done // 3 * 3
        history = train(
            model,
            optimizer,
            augment=RandomShift(1) if batch is None else Interrupting(batch - skipped),
            schedule=CosineSchedule(0.05, 9, 2),
            run_dir=run_dir,
            resume=True,
        )
        assert history.interrupted == (batch is not None)
        done = optimizer.steps
        if batch is not None:
            assert done == batch + 1
    return model, optimizer, history


OPTIMIZERS = {
    "momentum": lambda p: SGD(p, 0.05, 0.9),
    "adam": lambda p: Adam(p, 0.01),
}


def equal_ends(a, b):
    same_state(snapshot(a[0]), snapshot(b[0]))
    same_state(a[1].state(), b[1].state())
    assert a[1].lr == b[1].lr
    assert numbers(a[2]) == numbers(b[2])
    for one, other in zip(a[0].generators(), b[0].generators(), strict=True):
        assert one.bit_generator.state == other.bit_generator.state


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("batches", [[0], [1], [2], [4], [8], [1, 2, 6]])
def test_interrupted_and_resumed_is_unbroken(backend, optimizer, batches, tmp_path):
    make = OPTIMIZERS[optimizer]
    equal_ends(unbroken(backend, make), broken(backend, make, batches, tmp_path))


@given(batches=st.sets(st.integers(0, 8), max_size=5))
def test_any_interruptions_and_resumptions_are_unbroken(batches):
    make = OPTIMIZERS["adam"]
    with tempfile.TemporaryDirectory() as run_dir:
        equal_ends(unbroken("reference", make), broken("reference", make, batches, run_dir))


def test_more_epochs_go_on_from_the_last(tmp_path):
    whole = network()
    history = train(whole, epochs=4)
    first = network()
    train(first, epochs=2, run_dir=tmp_path)
    second = network(seed=1)
    resumed = train(second, epochs=4, run_dir=tmp_path, resume=True)
    same_state(snapshot(whole), snapshot(second))
    assert numbers(resumed) == numbers(history)
    third = network(seed=2)
    again = train(third, epochs=4, run_dir=tmp_path, resume=True)
    assert numbers(again) == numbers(history)
    same_state(snapshot(whole), snapshot(third))


def test_ctrl_c_keeps_what_was_learned(tmp_path):
    model = network()
    before = snapshot(model)
    handler = signal.getsignal(signal.SIGINT)
    history = train(model, augment=Interrupting(4), run_dir=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert history.interrupted and len(history.epochs) == 1
    arrays, meta = load_checkpoint(tmp_path / "last.npz")
    assert meta["step"] == 2 and meta["history"]["interrupted"]
    for name, value in snapshot(model).items():
        np.testing.assert_array_equal(arrays[f"model.{name}"], value)
    assert (before["1.weight"] != model.state()["1.weight"]).any()


def test_ctrl_c_without_a_folder_keeps_the_model():
    model = network()
    history = train(model, augment=Interrupting(1))
    assert history.interrupted and history.epochs == []


def test_a_second_ctrl_c_ends_it_at_once(tmp_path):
    model = network()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(model, augment=Interrupting(4, presses=2), run_dir=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_checkpoint(tmp_path / "last.npz")[1]["epoch"] == 1


def test_training_in_a_thread_leaves_signals_alone():
    histories = []
    thread = threading.Thread(target=lambda: histories.append(train(network(), epochs=1)))
    thread.start()
    thread.join()
    assert len(histories[0].epochs) == 1


def test_best_and_last_checkpoints(tmp_path):
    model = network()

    def worse_at_the_end(step):
        return 0.01 if step < 18 else 3.0

    history = train(model, epochs=7, run_dir=tmp_path, schedule=worse_at_the_end)
    assert history.best is not history.epochs[-1]
    for name, epoch in (("best.npz", history.best), ("last.npz", history.epochs[-1])):
        restored = network(seed=3)
        meta = load_model(restored, tmp_path / name)
        assert meta["epoch"] == epoch.epoch
        assert evaluate(restored, VALIDATION) == pytest.approx((epoch.val_loss, epoch.val_accuracy))
    assert [epoch.lr for epoch in history.epochs] == [0.01] * 6 + [3.0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.npz", "last.npz"]


def test_without_validation_there_is_no_best(tmp_path):
    model = network()
    fit(model, TRAIN, epochs=1, batch_size=16, optimizer=Adam(model.parameters()), run_dir=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.npz"]


def test_on_epoch_comes_after_the_checkpoint(tmp_path):
    seen = []

    def on_epoch(record):
        seen.append((record.epoch, load_checkpoint(tmp_path / "last.npz")[1]["epoch"]))

    train(network(), epochs=2, run_dir=tmp_path, on_epoch=on_epoch)
    assert seen == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("0.reduce.weight", r"layer 0 \(Involution2D\(2"),
        ("1.weight", r"layer 1 \(Conv2D\(2, 4, 3"),
        ("4.body.0.weight", r"layer 4.body.0 \(Conv2D\(4, 4, 1"),
        ("4.body.1.beta", r"layer 4.body.1 \(BatchNorm\(4"),
        ("7.bias", r"layer 7 \(Dense\(64, 3\)\)"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_loss_that_is_not_finite_stops_it_and_names_the_place(backend, tmp_path, name, origin):
    model = network(backend)
    optimizer = Adam(model.parameters())

    def break_it(record):
        if record.epoch == 2:
            next(p for p in model.parameters() if p.name == name).value[...] = np.nan

    with pytest.raises(TrainingDiverged, match=rf"epoch 3, step 1; first not finite: {origin}"):
        train(model, optimizer, run_dir=tmp_path, on_epoch=break_it)
    assert optimizer.steps == 6
    restored = network(backend, seed=1)
    assert load_model(restored, tmp_path / "last.npz")["epoch"] == 2
    assert all(np.isfinite(value).all() for value in restored.state().values())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_learning_rate_that_is_far_too_high_is_found_out():
    model = network()
    with pytest.raises(TrainingDiverged, match=r"the loss became (nan|inf) in epoch \d, step \d"):
        train(model, SGD(model.parameters(), 1e30), epochs=3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_first_layer_that_is_not_finite():
    model = network()
    x = np.ones((2, 8, 8, 2), np.float32)
    assert training.first_non_finite(model, x) is None
    model.layers[7].weight.value[...] = np.inf
    model.layers[4].body.layers[1].gamma.value[0] = np.inf
    assert training.first_non_finite(model, x).startswith("layer 4.body.1 (BatchNorm")
    assert training.first_non_finite(Dense(2, 2), x * np.nan) == "the input"


def test_clipping_bounds_the_step():
    model = Sequential(Flatten(), Dense(128, CLASSES)).to("reference")
    before = snapshot(model)
    fit(
        model, TRAIN, epochs=1, batch_size=40, optimizer=SGD(model.parameters(), 0.5),
        clip_norm=0.01,
    )  # fmt: skip
    moved = sum(((value - before[name]) ** 2).sum() for name, value in model.state().items())
    assert np.sqrt(moved) == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_the_schedule_counts_steps_over_epochs():
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.01 / (step + 1)

    history = train(network(), schedule=schedule, epochs=2)
    assert asked == list(range(6))
    assert [epoch.lr for epoch in history.epochs] == [0.01 / 3, 0.01 / 6]


def test_evaluation_does_not_depend_on_the_batches():
    model = network()
    train(model, epochs=1)
    before = snapshot(model)
    results = [evaluate(model, VALIDATION, batch_size=size) for size in (1, 4, 21, 100)]
    for result in results:
        assert result == pytest.approx(results[0], rel=1e-5)
    logits = predict(model, VALIDATION, batch_size=4)
    assert logits.shape == (21, CLASSES)
    np.testing.assert_allclose(logits, predict(model, VALIDATION), rtol=1e-4, atol=1e-5)
    assert results[0][1] == (logits.argmax(axis=1) == VALIDATION.labels).mean()
    same_state(before, snapshot(model))


def test_pixels_reach_training_and_validation_alike():
    model = Sequential(Flatten(), Dense(128, CLASSES)).to("reference")
    pixels = {"scale": 1 / 128, "mean": [0.5, 1.0], "std": [2.0, 0.5]}
    history = fit(
        model, TRAIN, TRAIN, epochs=1, batch_size=40, optimizer=SGD(model.parameters(), 0.0),
        **pixels,
    )  # fmt: skip
    (epoch,) = history.epochs
    assert epoch.loss == pytest.approx(epoch.val_loss, rel=1e-5)
    assert evaluate(model, TRAIN, **pixels) == pytest.approx((epoch.val_loss, epoch.val_accuracy))
    x = (TRAIN.images / 128 - [0.5, 1.0]) / [2.0, 0.5]
    dense = model.layers[1]
    np.testing.assert_allclose(
        predict(model, TRAIN, **pixels),
        x.reshape(40, -1) @ dense.weight.value,
        rtol=1e-4,
        atol=1e-4,
    )


def test_it_is_silent_where_the_output_is_no_terminal(capfd):
    train(network(), epochs=1)
    assert capfd.readouterr() == ("", "")


def test_another_loss_is_used():
    model = network()
    smoothed = SoftmaxCrossEntropy(label_smoothing=0.5).to("reference")
    plain = train(network(), epochs=1).epochs[0].loss
    assert train(model, epochs=1, loss=smoothed).epochs[0].loss != plain


# What is refused.


def with_labels(split, *labels):
    changed = split.labels.copy()
    changed[-len(labels) :] = labels
    return Split(split.images, changed)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train": with_labels(TRAIN, 3)}, ValueError, r"train labels must lie in 0\.\.2, got 3"),
        ({"train": with_labels(TRAIN, -1)}, ValueError, r"train labels must lie .* got -1"),
        ({"validation": with_labels(TRAIN, 9)}, ValueError, "validation labels must lie .* got 9"),
        ({"train": (TRAIN.images, TRAIN.labels)}, TypeError, "train must be a Split, got tuple"),
        ({"train": Split(TRAIN.images[..., :1], TRAIN.labels)}, ValueError, r"\(H, W, 2\)"),
        ({"validation": Split(TRAIN.images[:, :6], TRAIN.labels)}, ValueError, "Dense: a sample"),
        ({"epochs": 0}, ValueError, "fit: epochs must be a whole number of at least 1, got 0"),
        ({"epochs": 1.5}, ValueError, "fit: epochs must be a whole number"),
        ({"batch_size": 0}, ValueError, "fit: batch_size must be a whole number"),
        ({"clip_norm": 0}, ValueError, "max_norm must be a number above 0"),
        ({"clip_norm": np.nan}, ValueError, "max_norm must be a number above 0"),
        ({"scale": np.nan}, ValueError, "scale"),
        ({"std": 0}, ValueError, "std"),
        ({"resume": True}, ValueError, "fit: resume needs run_dir"),
        ({"seed": -1}, ValueError, "fit: seed must be a whole number of at least 0, got -1"),
        ({"seed": 1.5}, ValueError, "fit: seed must be a whole number"),
        ({"model": 3}, TypeError, "fit: model must be of the kind Layer, got int"),
        ({"optimizer": None}, TypeError, "fit: optimizer must be of the kind Optimizer, got"),
        (
            {"optimizer": Adam(Dense(2, 3).parameters())},
            ValueError,
            r"fit: the optimizer has Parameter\(weight, \(2, 3\), float32\), which is not of the",
        ),
        ({"loss": 3}, TypeError, "fit: loss must have forward and backward"),
        ({"augment": "flip"}, TypeError, "fit: augment must be a function, got 'flip'"),
        ({"augment": lambda images, rng: None}, ValueError, "augment must return images of shape"),
        ({"schedule": 0.1}, TypeError, "fit: schedule must be a function"),
        ({"scale": "a"}, TypeError, "scale is 'a', accepted are numbers"),
    ],
)
def test_bad_input_is_refused_before_anything_changes(changes, error, message):
    model = network()
    before = snapshot(model)
    arguments = {
        "model": model,
        "train": TRAIN,
        "validation": VALIDATION,
        "epochs": 1,
        "batch_size": 16,
        "optimizer": Adam(model.parameters()),
    }
    with pytest.raises(error, match=message):
        fit(**(arguments | changes))
    same_state(before, snapshot(model))


def test_confusion_counts_and_refuses_other_classes():
    counts = confusion_matrix(np.array([0, 1, 1]), np.array([0, 2, 2]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1, got 0 to 2"):
        confusion_matrix(np.array([0, 2]), np.array([0, 1]), 2)
    with pytest.raises(ValueError, match=r"predicted must lie in 0\.\.1, got -1 to 1"):
        confusion_matrix(np.array([0, 1]), np.array([-1, 1]), 2)
    with pytest.raises(TypeError, match="labels must be whole numbers, got bool"):
        confusion_matrix(np.array([True, False]), np.array([0, 1]), 2)
    with pytest.raises(ValueError, match=r"predicted must have shape \(3,\), got \(1,\)"):
        confusion_matrix(np.array([0, 1, 1]), np.array([0]), 2)


def test_data_that_is_no_data_set():
    with pytest.raises(DataError, match="the data set is empty"):
        Split(TRAIN.images[:0], TRAIN.labels[:0])
    with pytest.raises(DataError, match="got 40 images and 39 labels"):
        Split(TRAIN.images, TRAIN.labels[1:])


def test_a_run_dir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    model = network()
    before = snapshot(model)
    with pytest.raises(OSError):
        train(model, run_dir=tmp_path / "file")
    with pytest.raises(OSError):
        train(model, run_dir=tmp_path / "file" / "below")
    same_state(before, snapshot(model))


def test_a_read_only_run_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(training.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="cannot write to run_dir"):
        train(network(), run_dir=tmp_path)


@pytest.mark.parametrize(
    ("settings", "make", "message"),
    [
        ({"seed": 6}, Adam, "of a run with seed 5, not 6"),
        ({"batch_size": 20}, Adam, "of a run with batch_size 16, not 20"),
        ({"scale": 1.0}, Adam, "of a run with scale 0.00392156862745098, not 1.0"),
        ({"mean": np.ones(2)}, Adam, r"of a run with mean None, not \[1.0, 1.0\]"),
        ({"clip_norm": 1.0}, Adam, "of a run with clip_norm None, not 1.0"),
        ({}, AdamW, "of a run with optimizer Adam, not AdamW"),
    ],
)
def test_resuming_another_run_is_refused(tmp_path, settings, make, message):
    train(network(), epochs=1, run_dir=tmp_path)
    model = network(seed=1)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=f"last.npz is {message}"):
        train(model, make(model.parameters()), run_dir=tmp_path, resume=True, **settings)
    same_state(before, snapshot(model))


def test_resuming_with_other_data_is_refused(tmp_path):
    train(network(), epochs=1, run_dir=tmp_path)
    model = network()
    with pytest.raises(CheckpointError, match="of a run with training_images 40, not 21"):
        fit(
            model, VALIDATION, epochs=3, batch_size=16, seed=5, run_dir=tmp_path, resume=True,
            optimizer=Adam(model.parameters()),
        )  # fmt: skip


def head(*layers):
    rng = np.random.default_rng(0)
    return Sequential(Flatten(), *layers, Dense(128, CLASSES, rng=rng)).to("reference")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (head(Dropout(0.5)), "of a network with 0 layers that draw random numbers, not 1"),
        (head(ReLU()), "does not fit the network: 2.weight is missing"),
    ],
)
def test_resuming_another_network_is_refused(tmp_path, other, message):
    train(head(), epochs=1, run_dir=tmp_path)
    before = snapshot(other)
    with pytest.raises(CheckpointError, match=message):
        train(other, run_dir=tmp_path, resume=True)
    same_state(before, snapshot(other))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    train(network(), epochs=1, run_dir=tmp_path)
    last = tmp_path / "last.npz"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="last.npz is damaged"):
        train(network(), run_dir=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="last.npz is damaged"):
        load_model(network(), last)


def test_resuming_where_nothing_is_starts_at_the_beginning(tmp_path):
    history = train(network(), epochs=1, run_dir=tmp_path / "new", resume=True)
    assert numbers(history) == numbers(train(network(), epochs=1))


def test_a_model_of_another_kind_is_not_loaded(tmp_path):
    train(head(), epochs=1, run_dir=tmp_path)
    with pytest.raises(
        CheckpointError, match="does not fit the network: 0.reduce.weight is missing"
    ):
        load_model(network(), tmp_path / "last.npz")


def test_numbers_of_numpy_are_kept_in_checkpoints(tmp_path):
    model = network()
    train(
        model, batch_size=np.int64(16), seed=np.int64(5), epochs=np.int64(1), run_dir=tmp_path,
        schedule=lambda step: np.float32(0.01),
    )  # fmt: skip
    twin = network()
    load_model(twin, tmp_path / "last.npz")
    same_state(snapshot(model), snapshot(twin))


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "evaluate", lambda *args, **settings: (float("nan"), 0.1))
    with pytest.raises(TrainingDiverged, match="validation loss became nan after epoch 1"):
        train(network(), run_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_best_checkpoint_that_cannot_be_written_is_made_by_the_next_try(tmp_path, monkeypatch):
    save = training._Run.save
    accuracies = iter([0.1, 0.2, 0.1, 0.2, 0.2])
    monkeypatch.setattr(training, "evaluate", lambda *args, **kw: (1.0, next(accuracies)))

    def full(run, name):
        if name == "best.npz" and run.epoch == 2:
            raise OSError(28, "No space left on device")
        save(run, name)

    train(network(), epochs=2, run_dir=tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "save", full)
        with pytest.raises(OSError, match="No space"):
            train(network(), epochs=2, run_dir=tmp_path / "full")
    train(network(), epochs=2, run_dir=tmp_path / "full", resume=True)
    one, other = (network(seed=1) for _ in range(2))
    for model, name in ((one, "unbroken"), (other, "full")):
        load_model(model, tmp_path / name / "best.npz")
    same_state(snapshot(one), snapshot(other))


@pytest.mark.parametrize("rate", [-1.0, float("nan"), "a"])
def test_what_a_schedule_returns_is_checked(rate):
    model = network()
    before = snapshot(model)
    with pytest.raises(ValueError, match="what schedule returns must be a number"):
        train(model, schedule=lambda step: rate)
    same_state(before, snapshot(model))
