"""The cuda backend against the reference: on a GPU, or in Numba's simulator.

    NUMBA_ENABLE_CUDASIM=1 pytest tests/test_cuda.py        anywhere; few and small examples
    pytest -m gpu tests/test_cuda.py                        on a machine with an NVIDIA GPU

The simulator runs every GPU thread as a thread of Python and finds each index that is out of
bounds; it knows no types and no races.
"""

import collections
import copy
import gc
import os
import sys
import weakref
from types import SimpleNamespace

import checks
import numpy as np
import pytest
from cases import CASES, UPDATE_CASES
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from scratchnet import (
    SGD,
    Adam,
    SoftmaxCrossEntropy,
    clip_gradients,
    evaluate,
    fit,
    gradcheck,
    predict,
    training,
)
from scratchnet.backends import (
    OPERATORS,
    UPDATES,
    BackendError,
    choose_backend,
    get_backend,
    reference,
)
from scratchnet.data import Split
from scratchnet.layers import (
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    Involution2D,
    MaxPool2D,
    ReLU,
    Sequential,
)
from scratchnet.losses import SoftmaxTwiceCrossEntropy

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
try:
    get_backend("cuda")
except BackendError as error:
    pytest.skip(f"{error}; or set NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)

from gpu_ops import OnHost  # noqa: E402
from refusals import (  # noqa: E402
    BACKWARD,
    FORWARD,
    UPDATE,
    check_backward_refuses,
    check_forward_refuses,
    check_update_refuses_and_changes_nothing,
    each,
)

from scratchnet.backends.cuda import arrays, device, recording  # noqa: E402

if SIMULATED:
    # The simulator's main thread spins while it waits for the others; let it spin shorter.
    sys.setswitchinterval(1e-4)
pytestmark = [] if SIMULATED else [pytest.mark.gpu]

OPS = OnHost()
FLOATS = (np.float32, np.float64)
every_operator = pytest.mark.parametrize("operator", OPERATORS)
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.__name__)


def drawn(times):
    """A property, tried so many times only: on a GPU every size compiles its kernels anew.

    In the simulator without shrinking, which would take it hours.
    """

    def decorate(function):
        few = settings(max_examples=times, derandomize=SIMULATED, deadline=None)
        if SIMULATED:
            few = settings(few, phases=(Phase.explicit, Phase.generate))
        return few(given(data=st.data())(function))

    return decorate


def _draw(data, operator):
    sizes = data.draw(CASES[operator].sizes, label=operator)
    return CASES[operator].draw(sizes), sizes["seed"]


@every_dtype
@every_operator
def test_values_worked_by_hand(operator, dtype):
    checks.check_by_hand(OPS, operator, dtype)


@pytest.mark.parametrize("dtype", FLOATS[1:] if SIMULATED else FLOATS[:1])
@every_operator
def test_agrees_with_the_reference_on_nasties(operator, dtype):
    for sizes in CASES[operator].nasties:
        arguments = CASES[operator].draw(sizes)
        checks.check_parity(OPS, reference, operator, arguments, dtype, sizes["seed"])


@every_operator
@drawn(times=5)
def test_agrees_with_the_reference(operator, data):
    arguments, seed = _draw(data, operator)
    checks.check_parity(OPS, reference, operator, arguments, np.float32, seed)


@pytest.mark.parametrize("operator", [op for op in OPERATORS if CASES[op].kinks])
@drawn(times=2)
def test_agrees_with_the_reference_on_kinks_and_ties(operator, data):
    sizes = data.draw(CASES[operator].sizes, label=operator)
    arguments = CASES[operator].kinks(np.random.default_rng(sizes["seed"]), sizes)
    checks.check_parity(OPS, reference, operator, arguments, np.float64, sizes["seed"])


@pytest.mark.parametrize("operator", [op for op in OPERATORS if CASES[op].forward_only])
@drawn(times=2)
def test_forward_without_backward_agrees_with_the_reference(operator, data):
    sizes = data.draw(CASES[operator].sizes, label=operator)
    arguments = CASES[operator].forward_only(np.random.default_rng(sizes["seed"]), sizes)
    checks.check_forward_parity(OPS, reference, operator, arguments, np.float32)


@each(FORWARD)
def test_forward_refuses(operator, argument, value, error, words):
    check_forward_refuses(OPS, operator, argument, value, error, words)


@each(BACKWARD)
def test_backward_refuses(operator, argument, value, error, words):
    check_backward_refuses(OPS, operator, argument, value, error, words)


@each(UPDATE)
def test_update_refuses_and_changes_nothing(operator, argument, value, error, words):
    check_update_refuses_and_changes_nothing(OPS, operator, argument, value, error, words)


@every_operator
@drawn(times=1)
def test_pure_and_repeatable(operator, data):
    checks.check_pure(OPS, operator, *_draw(data, operator))


@every_operator
@drawn(times=2)
def test_need_dx(operator, data):
    checks.check_need_dx(OPS, operator, *_draw(data, operator))


@every_operator
@drawn(times=1)
def test_nan_does_not_vanish(operator, data):
    checks.check_nan(OPS, reference, operator, *_draw(data, operator))


@pytest.mark.skipif(SIMULATED, reason="hours in the simulator")
@every_dtype
@every_operator
def test_same_bits_however_often(operator, dtype):
    case = CASES[operator]
    arguments = checks.cast(case.draw(case.large), dtype)
    checks.check_parity(OPS, reference, operator, arguments, dtype, case.large["seed"])
    checks.check_pure(OPS, operator, arguments, case.large["seed"], times=8)


@pytest.mark.skipif(SIMULATED, reason="the reference's gradients are what the others agree with")
@every_operator
@drawn(times=1)
def test_gradient(operator, data):
    checks.check_gradient(OPS, operator, *_draw(data, operator))


# More blocks than one, tails that do not fill a tile


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("per_group", [3, 4])
def test_involution_over_several_blocks(groups, per_group):
    sizes = {"N": 1, "H": 5, "W": 9, "K": 3, "G": groups, "per_group": per_group * 5}
    sizes |= {"stride": 1, "dilation": 1, "seed": 1}
    arguments = CASES["involution"].draw(sizes)
    checks.check_parity(OPS, reference, "involution", arguments, np.float32, 1)


@pytest.mark.parametrize(("rows", "features", "out"), [(17, 19, 9), (61, 3, 2), (8, 4, 8)])
def test_product_over_several_tiles_and_chunks(rows, features, out):
    rng = np.random.default_rng(0)
    arguments = {"x": rng.standard_normal((rows, features)), "bias": rng.standard_normal(out)}
    arguments["weight"] = rng.standard_normal((features, out))
    checks.check_parity(OPS, reference, "dense", arguments, np.float32, 1)


def test_variance_of_values_far_from_zero():
    shape = (9, 3, 3) if SIMULATED else (64, 32, 32, 3)
    x = (1e4 + np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    gamma, beta = np.ones(3, np.float32), np.zeros(3, np.float32)
    exact = reference.batchnorm_forward(*(a.astype(np.float64) for a in (x, gamma, beta)), eps=1e-3)
    y, mean, inv_std = OPS.batchnorm_forward(x, gamma, beta, 1e-3)
    np.testing.assert_allclose(mean, exact[1], rtol=1e-6)
    np.testing.assert_allclose(inv_std, exact[2], rtol=1e-3)
    np.testing.assert_allclose(y, exact[0], atol=5e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_normalised_is_what_the_host_makes_of_it(dtype):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 5, 4, 3)).astype(dtype)
    factor, offset = rng.standard_normal((2, 60)).astype(np.float32)
    found, expected = (b.normalised(images, factor, offset) for b in (OPS, reference))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


def test_dropout_is_the_same_on_every_backend():
    x = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    for seed in (0, 7, 2**63, 2**64 - 1):
        expected = reference.dropout_forward(x, 0.4, seed)
        np.testing.assert_array_equal(OPS.dropout_forward(x, 0.4, seed), expected)


def test_a_label_out_of_range_on_the_gpu_shows():
    logits = np.zeros((2, 3), np.float32)
    labels = OPS.gpu.to_device(np.array([0, 3]))
    assert np.isnan(OPS.softmax_cross_entropy_forward(logits, labels)[0])


# Updates


@pytest.mark.parametrize("update", UPDATES)
def test_update_worked_by_hand(update):
    for hand in UPDATE_CASES[update].hands:
        checks.check_update_by_hand(OPS, update, hand, np.float64)


@pytest.mark.parametrize("update", UPDATES)
@drawn(times=3)
def test_update_agrees_with_the_reference(update, data):
    case = UPDATE_CASES[update]
    sizes = data.draw(case.sizes, label=update)
    found = checks.cast(case.arguments(np.random.default_rng(sizes["seed"]), sizes), np.float64)
    expected = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in found.items()}
    for step in (1, 2):
        stepped = {"step": step} if "step" in found else {}
        getattr(OPS, update)(**(found | stepped))
        getattr(reference, update)(**(expected | stepped))
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            checks.assert_close(found[name], value, checks.tolerance(np.float64, 9), name)


def test_parameters_side_by_side_change_in_few_launches():
    layers = Sequential(*(Dense(3, 2, rng=np.random.default_rng(i)) for i in range(9)))
    twin = copy.deepcopy(layers)
    layers.to("cuda")
    optimizers = Adam(layers.parameters(), 0.1), Adam(twin.parameters(), 0.1)
    rng = np.random.default_rng(1)
    for parameter, other in zip(layers.parameters(), twin.parameters(), strict=True):
        other.grad = rng.standard_normal(other.value.shape).astype(np.float32)
        parameter.grad = OPS.gpu.to_device(other.grad)
    before = device.launches
    for optimizer in optimizers:
        optimizer.step()
    assert device.launches - before == 2  # eighteen parameters, sixteen at once
    for name, value in twin.state().items():
        np.testing.assert_allclose(layers.state()[name], value, rtol=1e-5, err_msg=name)


# Arrays


def test_memory_is_used_again_only_when_nobody_holds_it():
    first = arrays.empty((3, 5), np.float32)
    view, memory = first.reshape(-1), first.memory
    del first
    assert arrays.empty((5, 3), np.float32).memory is not memory
    del view
    assert arrays.empty(15, np.float32).memory is memory


def _array():
    return arrays.empty(7, np.float32)


def _recording():
    return recording._Recording(lambda: (_array(),)[1:], ())


@pytest.mark.parametrize("make", [_array, _recording])
def test_memory_in_a_cycle_is_not_given_back(make, monkeypatch):
    class Memory:
        pass

    given_back = []

    def allocate(dtype, size):
        memory = Memory()
        weakref.finalize(memory, given_back.append, size)  # as Numba's memory has it
        return memory

    monkeypatch.setattr(arrays, "_allocate", allocate)
    monkeypatch.setattr(arrays, "_free", collections.defaultdict(list))
    cycle = [make()]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert arrays._free[np.dtype(np.float32), 7]
    assert not given_back


@pytest.mark.parametrize(
    ("code", "expected"), [(2, "no memory for 3 MiB more: take a smaller batch"), (700, "broken")]
)
def test_only_a_full_gpu_is_called_full(monkeypatch, code, expected):
    class DriverError(Exception):
        pass

    def device_array(size, dtype):
        error = DriverError("broken")
        error.code = code
        raise error

    driver = SimpleNamespace(driver=SimpleNamespace(CudaAPIError=DriverError))
    monkeypatch.setattr(arrays, "cuda", SimpleNamespace(device_array=device_array, cudadrv=driver))
    with pytest.raises(BackendError if code == 2 else DriverError, match=expected):
        arrays._allocate(np.dtype(np.float32), 3 * 2**18)


def test_uploads_keep_their_order_and_their_values():
    sizes = [*[1000] * 3 * arrays.STAGES, arrays.STAGE_BYTES // 4 + 1]
    target = np.empty(1000, np.float32)
    uploaded = []
    for i, size in enumerate(sizes):
        source = target if size == 1000 else np.empty(size, np.float32)
        source[:] = i  # may be written as soon as the upload before has returned
        uploaded.append(arrays.to_device(source))
    for i, (array, size) in enumerate(zip(uploaded, sizes, strict=True)):
        np.testing.assert_array_equal(arrays.to_host(array), np.full(size, i, np.float32))


def test_an_empty_batch_is_no_launch():
    empty = np.empty((0, 3), np.float32)
    before = device.launches
    for y in (OPS.gpu.relu_forward(empty), OPS.gpu.add_forward(empty, empty)):
        assert y.shape == (0, 3)
    assert OPS.gpu.to_device(empty).reshape(0, -1).shape == (0, 0)
    assert OPS.gpu.dense_forward(empty, np.ones((3, 2), np.float32), None).shape == (0, 2)
    assert device.launches == before


def test_gradients_of_weights_of_an_empty_batch_are_zeros():
    x, weight = np.empty((0, 3), np.float32), np.ones((3, 2), np.float32)
    dx, dweight, dbias = OPS.dense_backward(np.empty((0, 2), np.float32), x, weight)
    assert dx.shape == (0, 3)
    np.testing.assert_array_equal(dweight, np.zeros((3, 2)))
    np.testing.assert_array_equal(dbias, np.zeros(2))


@pytest.mark.skipif(SIMULATED, reason="the simulator has no memory that others could see")
def test_arrays_of_others_come_in():
    class Foreign:
        """An array as other libraries show theirs."""

        def __init__(self, array, **interface):
            self.array = arrays.to_device(array)
            self.__cuda_array_interface__ = self.array.__cuda_array_interface__ | interface

    logits = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    labels = np.array([0, 2, 1, 1])
    loss, probabilities = OPS.gpu.softmax_cross_entropy_forward(Foreign(logits), Foreign(labels))
    expected = reference.softmax_cross_entropy_forward(logits, labels)
    assert float(loss) == pytest.approx(expected[0], rel=1e-5)
    assert int(OPS.gpu.count_correct(Foreign(logits), labels)) == reference.count_correct(
        logits, labels
    )
    too_large = Foreign(logits, shape=(2**31, 1))
    with pytest.raises(ValueError, match="hold at most"):
        OPS.gpu.relu_forward(too_large)


def test_packed_arrays_come_back_and_copies_stay_packed():
    values = [np.arange(3.0), np.arange(4.0).reshape(2, 2), np.arange(2, dtype=np.float32)]
    packed = arrays.pack(values)
    assert packed[0].owner is packed[1].owner
    copies = copy.deepcopy(packed)
    assert copies[0].owner is copies[1].owner is not packed[0].owner
    arrays.copy_into(packed[1], np.zeros((2, 2)))
    for value, kept in zip(values, copies, strict=True):
        np.testing.assert_array_equal(arrays.to_host(kept), value)
    np.testing.assert_array_equal(arrays.to_host(packed[1]), 0)


def test_in_place_functions_refuse_arrays_of_the_host():
    ones = np.ones(3, np.float32)
    with pytest.raises(TypeError, match="must be on the GPU"):
        OPS.gpu.sgd_update(ones, ones, ones, 0.1, 0.0, False, 0.0)


def test_auto_takes_the_gpu():
    assert choose_backend("auto") == choose_backend("cuda") == "cuda"


# Whole networks


def _network():
    rng = np.random.default_rng(0)
    return Sequential(
        Conv2D(1, 4, 3, padding="same", rng=rng), ReLU(), MaxPool2D(2),
        Involution2D(4, 3, groups=2, rng=rng), BatchNorm(4),
        Flatten(), Dropout(0.5, rng=rng), Dense(16, 3, rng=rng),
    )  # fmt: skip


def _data(count):
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (count, 5, 4, 1), dtype=np.uint8)
    return Split(images, rng.integers(0, 3, count))


@pytest.mark.parametrize(
    ("clip_norm", "kind"),
    [(None, SoftmaxCrossEntropy), (1.0, SoftmaxCrossEntropy), (None, SoftmaxTwiceCrossEntropy)],
    ids=["recorded", "step by step", "softmax twice"],
)
def test_training_follows_the_reference(clip_norm, kind):
    networks = {name: _network().to(name) for name in ("reference", "cuda")}
    data, histories = _data(8), {}
    for name, network in networks.items():
        histories[name] = fit(
            network, data, data, epochs=2, batch_size=3, clip_norm=clip_norm,
            optimizer=SGD(network.parameters(), 0.05, momentum=0.9), loss=kind().to(name),
            schedule=lambda steps: 0.05 / (1 + steps),
        )  # fmt: skip
    for one, other in zip(*(h.epochs for h in histories.values()), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.val_loss == pytest.approx(other.val_loss, rel=1e-3)
        assert one.accuracy == other.accuracy
    expected, found = (network.state() for network in networks.values())
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(*(predict(n, data) for n in networks.values()), atol=1e-3)
    assert evaluate(networks["cuda"], data)[1] == evaluate(networks["reference"], data)[1]


def _steps(network, optimizer):
    """A training step that can be recorded."""
    loss = SoftmaxCrossEntropy().to("cuda")

    def step(x, labels):
        logits = network.forward(x, training=True)
        value = loss.forward(logits, labels)
        network.backward(loss.backward(), need_dx=False)
        optimizer.step()
        return value, OPS.gpu.count_correct(logits, labels)

    return step


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_recorded_step_is_the_step(kind):
    drawn, rng = _network().to("cuda"), np.random.default_rng(6)
    batches = [
        (rng.standard_normal((count, 5, 4, 1), np.float32), rng.integers(0, 3, count))
        for count in (3, 3, 2, 3)
    ]
    found = []
    for record in (False, True):
        network = copy.deepcopy(drawn)
        optimizer = kind(network.parameters(), 0.1)
        step = _steps(network, optimizer)
        if record:
            step = OPS.gpu.recorded(step)
        returned = []
        for n, (x, labels) in enumerate(batches):
            optimizer.lr = 0.1 / (1 + n)
            returned += step(x, labels) if record else step(*map(OPS.gpu.to_device, (x, labels)))
        random = [generator.bit_generator.state for generator in network.generators()]
        values = [float(value) for value in returned]  # all of them copies, not the last one's
        found.append((values, random, network.state() | optimizer.state()))
    assert found[0][:2] == found[1][:2]
    assert found[1][2]["steps"] == len(batches)
    for name, value in found[0][2].items():
        np.testing.assert_array_equal(found[1][2][name], value, err_msg=name)


@pytest.mark.parametrize(
    ("N", "hidden"), [(2, recording.CELLS // 2), (15, 4)], ids=["numbers", "memory"]
)
def test_what_a_recording_reads_is_not_written_by_its_step(N, hidden):
    """The numbers that come at each replay, and the memory of an optimizer that moves to the GPU in
    the step, are as large as arrays (N, hidden) that come and go in it."""
    rng = np.random.default_rng(7)
    x, labels = rng.standard_normal((N, hidden), np.float32), rng.integers(hidden, size=N)
    found = []
    for record in (False, True):
        layers = (Dense(hidden, hidden, rng=np.random.default_rng(i)) for i in range(3))
        network = Sequential(*(layer for dense in layers for layer in (dense, ReLU())))
        optimizer = SGD(network.parameters(), 0.1, momentum=0.9)
        step = _steps(network.to("cuda"), optimizer)
        step = OPS.gpu.recorded(step) if record else step
        given = (x, labels) if record else tuple(map(OPS.gpu.to_device, (x, labels)))
        found.append([float(step(*given)[0]) for _ in range(4)])
    assert found[0] == found[1]


def test_a_recording_keeps_its_memory_to_itself():
    step = OPS.gpu.recorded(lambda x: (OPS.gpu.relu_forward(OPS.gpu.relu_forward(x)),))
    x = np.arange(-3, 8, dtype=np.float32)
    step(x)
    others = [OPS.gpu.to_device(np.full(11, i, np.float32)) for i in range(5)]
    y = step(x[::-1].copy())[0]
    for i, other in enumerate(others):
        np.testing.assert_array_equal(OPS.gpu.to_host(other), np.full(11, i))
    np.testing.assert_array_equal(OPS.gpu.to_host(y), np.maximum(x[::-1], 0))
    before = len(arrays._free[np.dtype(np.float32), 11])
    del step
    assert len(arrays._free[np.dtype(np.float32), 11]) > before


def test_a_step_that_asks_for_its_values_cannot_be_recorded():
    step = OPS.gpu.recorded(lambda x: (x, float(OPS.gpu.relu_forward(x))))
    with pytest.raises(RuntimeError, match="has not run: it has no values to read"):
        step(np.zeros(1, np.float32))
    assert OPS.gpu.to_host(OPS.gpu.relu_forward(np.ones(1, np.float32))) == 1


def test_a_recorded_step_within_another_is_refused():
    inner = OPS.gpu.recorded(lambda x: (x,))
    outer = OPS.gpu.recorded(lambda x: inner(np.zeros(2, np.float32)))
    with pytest.raises(RuntimeError, match="cannot record another one"):
        outer(np.zeros(1, np.float32))
    (y,) = inner(np.ones(2, np.float32))
    np.testing.assert_array_equal(OPS.gpu.to_host(y), np.ones(2))


class _Foreign(ReLU):
    """A layer that may decide something in Python at each step."""


@pytest.mark.parametrize(("kind", "steps"), [(ReLU, 2), (_Foreign, 8)])
def test_only_layers_of_this_package_are_recorded(kind, steps, monkeypatch):
    network = Sequential(Flatten(), Dense(20, 3, rng=np.random.default_rng(0)), kind()).to("cuda")
    taken, step = [], training._train_step
    monkeypatch.setattr(training, "warm_up", lambda *_: 0.0)
    monkeypatch.setattr(training, "_train_step", lambda *given: taken.append(1) or step(*given))
    fit(network, _data(8), epochs=2, batch_size=2, optimizer=SGD(network.parameters(), 0.1))
    assert len(taken) == steps


def test_a_layer_on_the_gpu_has_its_gradients_checked_and_stays_there():
    layer = Dense(3, 2, rng=np.random.default_rng(0)).to("cuda")
    before = layer.weight.value, layer.weight.to_host()
    report = gradcheck(layer, np.random.default_rng(1).standard_normal((2, 3)), elements=2)
    assert report.worst.error < 1e-6
    assert layer.weight.value is before[0]
    np.testing.assert_array_equal(layer.weight.to_host(), before[1])


def test_a_network_moves_with_its_optimizer_and_back():
    network = Sequential(Dense(2, 3, rng=np.random.default_rng(0)))
    optimizer, loss = Adam(network.parameters(), 0.1), SoftmaxCrossEntropy()
    twin, twin_loss = copy.deepcopy((network, optimizer)), SoftmaxCrossEntropy()
    x, labels = np.array([[1, 2], [3, 4]], np.float32), np.array([0, 2])
    for backend in ("cpu", "cuda", "cpu"):
        network.to(backend)
        loss.to(backend)
        for model, step, criterion in ((network, optimizer, loss), (*twin, twin_loss)):
            criterion.forward(model.forward(x, training=True), labels)
            model.backward(criterion.backward())
            clip_gradients(model.parameters(), 0.5)
            step.step()
    for name, value in twin[0].state().items():
        np.testing.assert_allclose(network.state()[name], value, rtol=1e-4, err_msg=name)
    for name, value in twin[1].state().items():
        np.testing.assert_allclose(optimizer.state()[name], value, rtol=1e-4, err_msg=name)
