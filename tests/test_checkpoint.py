"""Checkpoints: what is read is what was written, and nothing else is taken for one."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchnet import CheckpointError, Dense, checkpoint, load_checkpoint, save_checkpoint
from scratchnet.checkpoint import check_arrays

ARRAYS = {
    "model.0.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "model.0.bias": np.array([np.nan, np.inf, -0.0]),
    "optimizer.steps": np.array(7),
}
META = {"epoch": 3, "lr": 0.1, "names": ["ä", "b"], "nothing": None}


def same(read, written):
    assert set(read) == set(written)
    for name, array in written.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "folder" / "a.npz"
    assert save_checkpoint(str(path), ARRAYS, META) == path
    arrays, meta = load_checkpoint(str(path))
    same(arrays, ARRAYS)
    assert meta == META
    assert [p.name for p in path.parent.iterdir()] == ["a.npz"]


def test_numbers_survive_to_the_last_bit(tmp_path):
    numbers = np.random.default_rng(0).standard_normal(50)
    state = np.random.default_rng(1).bit_generator.state
    path = save_checkpoint(tmp_path / "a.npz", {}, {"numbers": numbers.tolist(), "state": state})
    meta = load_checkpoint(path)[1]
    assert meta["numbers"] == numbers.tolist()
    assert meta["state"] == state


def test_a_name_without_npz_is_kept(tmp_path):
    path = save_checkpoint(tmp_path / "weights", ARRAYS)
    assert path.exists() and load_checkpoint(path)[1] == {}


@pytest.mark.parametrize(
    ("arrays", "meta", "error", "message"),
    [
        ({"b.npy": np.ones(1)}, None, ValueError, "an array is named 'b.npy'; accepted are"),
        ({"file": np.ones(1)}, None, ValueError, "an array is named 'file'"),
        ({"allow_pickle": np.ones(1)}, None, ValueError, "an array is named 'allow_pickle'"),
        ({"__meta__": np.ones(1)}, None, ValueError, "an array is named '__meta__'"),
        ({3: np.ones(1)}, None, ValueError, "an array is named 3"),
        (Dense(2, 2), None, TypeError, r"such as network\.state\(\), got Dense"),
        ({}, [1], TypeError, "meta must be a dictionary, got list"),
        ({}, {"x": np.ones(1)}, TypeError, "meta cannot be written as JSON: .* ndarray"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path, arrays, meta, error, message):
    with pytest.raises(error, match=f"save_checkpoint: .*{message}"):
        save_checkpoint(tmp_path / "new" / "a.npz", arrays, meta)
    assert list(tmp_path.iterdir()) == []


def test_no_pickle_is_written_or_read(tmp_path):
    with pytest.raises(TypeError, match="save_checkpoint: w holds Python objects"):
        save_checkpoint(tmp_path / "a.npz", {"w": np.array([{}], object)})
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "objects.npz"
    np.savez(path, __meta__=np.array("{}"), w=np.array([{"a": 1}], object))
    with pytest.raises(CheckpointError, match="objects.npz is damaged or no checkpoint"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(CheckpointError, match="objects.npz is damaged or no checkpoint"):
        load_checkpoint(path)


@pytest.fixture
def written(tmp_path):
    return save_checkpoint(tmp_path / "good.npz", ARRAYS, META)


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint .*none.npz"):
        load_checkpoint(tmp_path / "none.npz")


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.7, 0.99])
def test_a_truncated_file(written, share):
    content = written.read_bytes()
    written.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="good.npz is damaged or no checkpoint"):
        load_checkpoint(written)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_harmless(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("flip") / "a.npz"
    save_checkpoint(path, ARRAYS, META)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        arrays, meta = load_checkpoint(path)
    except CheckpointError as error:
        assert "a.npz" in str(error)
    else:  # bytes that nobody reads: dates, and the names and versions written twice
        for name in set(arrays) & set(ARRAYS):
            np.testing.assert_array_equal(arrays[name], ARRAYS[name])
        assert meta == META


def foreign_files(folder):
    np.save(folder / "plain.npy", np.zeros(3))
    np.savez(folder / "other.npz", w=np.zeros(3))
    np.savez(folder / "list.npz", __meta__=np.array("[1]"), w=np.zeros(3))
    np.savez(folder / "broken.npz", __meta__=np.array("{"), w=np.zeros(3))
    np.savez(folder / "number.npz", __meta__=np.array(3), w=np.zeros(3))
    (folder / "empty.npz").write_bytes(b"")
    (folder / "text.npz").write_text(json.dumps(META), encoding="utf-8")
    (folder / "folder.npz").mkdir()
    return sorted(folder.iterdir())


def test_foreign_files(tmp_path):
    files = foreign_files(tmp_path)
    assert len(files) == 8
    for path in files:
        with pytest.raises(CheckpointError, match=f"{path.name} is damaged or no checkpoint"):
            load_checkpoint(path)


def test_a_full_disk_leaves_the_checkpoint_as_it_was(written, monkeypatch):
    before = written.read_bytes()

    def half_a_file(file, **arrays):
        file.write(before[: len(before) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.np, "savez", half_a_file)
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint(written, {"model.0.weight": np.ones(4)})
    assert written.read_bytes() == before
    assert [p.name for p in written.parent.iterdir()] == ["good.npz"]


def test_an_interrupted_write_leaves_the_checkpoint_as_it_was(written, monkeypatch):
    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(written, ARRAYS)
    same(load_checkpoint(written)[0], ARRAYS)
    assert [p.name for p in written.parent.iterdir()] == ["good.npz"]


def test_a_description_that_json_cannot_hold_leaves_the_checkpoint_as_it_was(written):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(written, ARRAYS, {"model": object()})
    same(load_checkpoint(written)[0], ARRAYS)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        save_checkpoint(tmp_path / "file" / "a.npz", ARRAYS)


def test_every_difference_is_named():
    expected = {"a": np.zeros(2), "b": np.zeros((3, 4)), "c": np.zeros(1)}
    check_arrays("the network", {name: array + 1 for name, array in expected.items()}, expected)
    with pytest.raises(CheckpointError) as refusal:
        check_arrays("the network", {"a": np.zeros(3), "b": np.zeros((3, 4)), "d": 1}, expected)
    assert str(refusal.value) == (
        "the checkpoint does not fit the network: c is missing; d is unknown; "
        "a has shape (3,) instead of (2,)"
    )


def test_a_network_of_other_names_is_summed_up():
    expected = {f"{i}.weight": np.zeros(1) for i in range(6)}
    with pytest.raises(CheckpointError, match="0.weight is missing; .*, and 2 more$"):
        check_arrays("the network", {}, expected)
