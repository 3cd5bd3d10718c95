"""Figures: each is written, small, a picture, and says what it should in its words."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from scratchnet import History, models, plots
from scratchnet.data import Split
from scratchnet.history import Epoch

CLASSES = tuple("abcdefghij")


def history(epochs: int, val: bool = True) -> History:
    records = [
        Epoch(
            epoch=i + 1,
            loss=2 / (i + 1),
            accuracy=1 - 0.8 / (i + 1),
            val_loss=2.1 / (i + 1) if val else None,
            val_accuracy=1 - 0.85 / (i + 1) if val else None,
            seconds=1.0,
            val_seconds=0.1,
            images_per_second=100.0,
            lr=1e-3,
        )
        for i in range(epochs)
    ]
    return History(records)


def noise(count: int = 60, side: int = 28, channels: int = 1) -> Split:
    """Images that no compression makes smaller: the worst case for the size of a file."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    return Split(images, np.arange(count) % 10)


def guesses(labels: np.ndarray) -> dict[str, np.ndarray]:
    wrong = labels.copy()
    wrong[::3] = (wrong[::3] + 1) % 10
    return {"convolution": labels, "involution": wrong}


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were saved, to look into."""
    figures = []
    save = plots._save

    def keep(figure, path):
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    return figures


def check_png(path) -> None:
    with Image.open(path) as image:
        image.verify()
        assert image.format == "PNG"
        assert min(image.size) > 200
    assert path.stat().st_size <= plots.LARGEST


def test_histories_are_drawn_with_colour_marker_and_dashes(tmp_path, drawn):
    histories = {"convolution": history(5), "involution": history(4)}
    check_png(plots.plot_histories(histories, tmp_path / "sub" / "curves.png"))
    for axis in drawn[0].axes:
        styles = {
            (line.get_color(), line.get_marker(), line.get_linestyle()) for line in axis.lines
        }
        assert styles == {
            (plots.BLUE, "o", "-"),
            (plots.BLUE, "o", "--"),
            (plots.VERMILLION, "s", "-"),
            (plots.VERMILLION, "s", "--"),
        }
    accuracy, loss = drawn[0].axes
    trained, validated = accuracy.lines[:2]
    assert list(trained.get_xdata()) == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(validated.get_ydata(), [e.val_accuracy for e in history(5).epochs])
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [e.loss for e in history(5).epochs])


def test_a_history_without_validation_or_label_plots_itself(tmp_path, drawn):
    check_png(history(1, val=False).plot(tmp_path / "one.png"))
    assert len(drawn[0].axes[0].lines) == 1
    assert [text.get_text() for text in drawn[0].legends[0].texts] == ["training"]


def test_histories_without_an_epoch_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no epoch"):
        plots.plot_histories({"convolution": History()}, tmp_path / "none.png")


def test_labels_that_are_no_operator_get_colours_of_their_own():
    colours = plots._colours({"attention": 0, "involution": 0, "other": 0})
    assert colours[1] == plots.VERMILLION
    assert len(set(colours)) == 3


def test_confusion_shows_shares_of_the_true_class(tmp_path, drawn):
    labels = np.repeat(np.arange(10), 20)
    predicted = labels.copy()
    predicted[:5] = 7  # a quarter of class 0
    path = plots.plot_confusion(labels, {"involution": predicted}, CLASSES, tmp_path / "c.png")
    check_png(path)
    axis = drawn[0].axes[0]
    words = {text.get_position(): text.get_text() for text in axis.texts}
    assert words[(7, 0)] == "25" and words[(0, 0)] == "75" and words[(3, 3)] == "100"
    assert len(words) == 11
    assert axis.get_title() == "involution: 97.50% right"


@pytest.mark.parametrize("channels", [1, 3])
def test_predictions_mark_what_is_wrong(tmp_path, drawn, channels):
    data = noise(side=32, channels=channels)
    predictions = guesses(data.labels)
    check_png(plots.plot_predictions(data, predictions, CLASSES, tmp_path / "p.png"))
    words = [t.get_text() for axis in drawn[0].axes for t in axis.texts]
    assert sum(word.startswith("✓") for word in words) + sum(
        word.startswith("✗") for word in words
    ) == 2 * sum(bool(axis.images) for axis in drawn[0].axes)
    last_row = drawn[0].axes[-8:]
    assert all(any("✗" in t.get_text() for t in axis.texts) for axis in last_row if axis.images)


def test_predictions_of_few_images_and_no_error(tmp_path):
    data = noise(3)
    check_png(
        plots.plot_predictions(data, {"convolution": data.labels}, CLASSES, tmp_path / "few.png")
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_of_noise_still_fits(tmp_path, channels):
    check_png(
        plots.plot_samples(noise(150, 32, channels), CLASSES, tmp_path / "sheet.png", columns=6)
    )


@pytest.mark.parametrize("dataset", models.INPUT_SHAPES)
def test_networks_are_drawn_to_scale_with_their_parameters(tmp_path, drawn, dataset):
    shape = models.INPUT_SHAPES[dataset]
    networks = {op: models.report_network(dataset, op) for op in models.OPERATORS}
    check_png(plots.plot_networks(networks, shape, tmp_path / "networks.png"))
    axis = drawn[0].axes[0]
    words = "\n".join(text.get_text() for text in axis.texts)
    for network in networks.values():
        total = sum(p.value.size for p in network.parameters() if p.trainable)
        assert f"{total:,} parameters" in words
    front = axis.patches[0].get_xy()  # of the first block, the input
    assert np.ptp(front[:, 1]) == shape[0]
    # No two words share a place: their boxes on the canvas do not overlap.
    boxes = [text.get_window_extent() for text in axis.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
