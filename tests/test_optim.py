"""Optimizers against their formulas, on every backend."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchnet import SGD, Adam, AdamW, CheckpointError, Dense, Parameter, clip_gradients
from scratchnet.backends import BACKENDS, cpu

LRS = st.floats(1e-4, 1.0)
BETAS = st.floats(0, 0.999)
DECAYS = st.sampled_from([0.0, 0.01, 0.3])


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def parameter(value, backend="reference", name="weight", dtype=np.float64, trainable=True):
    made = Parameter(name, np.array(value, dtype), trainable)
    made.backend = backend
    return made


def run(optimizer, parameters, gradients):
    """Values of the first parameter after each step."""
    values = []
    for step in gradients:
        for p, gradient in zip(parameters, step, strict=True):
            p.grad = np.array(gradient, p.value.dtype)
        optimizer.step()
        values.append(parameters[0].value.copy())
    return values


def by_hand(make, gradients, backend):
    p = parameter([1.0], backend)
    return [value.item() for value in run(make([p]), [p], [[[g]] for g in gradients])]


def test_sgd_by_hand(backend):
    assert by_hand(lambda p: SGD(p, 0.1), [1, 2], backend) == pytest.approx([0.9, 0.7])


def test_momentum_by_hand(backend):
    # velocity 1, then 0.5 * 1 + 2 = 2.5
    values = by_hand(lambda p: SGD(p, 0.1, momentum=0.5), [1, 2], backend)
    assert values == pytest.approx([0.9, 0.65])


def test_nesterov_by_hand(backend):
    # 1 + 0.5 * 1, then 2 + 0.5 * 2.5
    values = by_hand(lambda p: SGD(p, 0.1, momentum=0.5, nesterov=True), [1, 2], backend)
    assert values == pytest.approx([0.85, 0.525])


def test_weight_decay_of_sgd_by_hand(backend):
    # 1 + 0.5 * 1, then 2 + 0.5 * 0.85
    values = by_hand(lambda p: SGD(p, 0.1, weight_decay=0.5), [1, 2], backend)
    assert values == pytest.approx([0.85, 0.6075])


def test_adam_by_hand(backend):
    # The first step is lr whatever the gradient. In the second
    # m = 0.5 * 0.5 * 1 + 0.5 * 2 = 1.25, v = 0.75 * 0.25 * 1 + 0.25 * 4 = 1.1875, and they are
    # divided by 1 - 0.5^2 and 1 - 0.75^2.
    second = (1.25 / 0.75) / math.sqrt(1.1875 / 0.4375)
    values = by_hand(lambda p: Adam(p, 0.1, betas=(0.5, 0.75), eps=1e-12), [1, 2], backend)
    assert values == pytest.approx([0.9, 0.9 - 0.1 * second])


def test_weight_decay_of_adam_and_of_adamw_by_hand(backend):
    # Adam: the decay is part of a gradient whose size does not matter. AdamW: 1 - 0.1 * 0.5 first.
    make = {"lr": 0.1, "eps": 1e-12, "weight_decay": 0.5}
    assert by_hand(lambda p: Adam(p, **make), [3], backend) == pytest.approx([0.9])
    assert by_hand(lambda p: AdamW(p, **make), [3], backend) == pytest.approx([0.85])


def test_eps_is_added_outside_the_root(backend):
    values = by_hand(lambda p: Adam(p, 0.1, eps=1.0), [3], backend)
    assert values == pytest.approx([1 - 0.1 * 3 / (3 + 1)])


def gradients_of(seed, steps, shapes):
    rng = np.random.default_rng(seed)
    values = [rng.standard_normal(shape) for shape in shapes]
    return values, [[rng.standard_normal(shape) for shape in shapes] for _ in range(steps)]


@given(
    seed=st.integers(0, 999),
    lr=LRS,
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    nesterov=st.booleans(),
    decay=DECAYS,
    backend=st.sampled_from(BACKENDS),
)
def test_sgd_is_its_formula(seed, lr, momentum, nesterov, decay, backend):
    values, gradients = gradients_of(seed, 5, [(3, 2), (4,)])
    parameters = [parameter(v, backend, f"p{i}") for i, v in enumerate(values)]
    steps = run(SGD(parameters, lr, momentum, nesterov, decay), parameters, gradients)
    w, velocity = values[0], 0
    for gradient, step in zip(gradients, steps, strict=True):
        g = gradient[0] + decay * w
        velocity = momentum * velocity + g
        w = w - lr * (g + momentum * velocity if nesterov else velocity)
        np.testing.assert_allclose(step, w, rtol=1e-10, atol=1e-12)


@given(
    seed=st.integers(0, 999),
    lr=LRS,
    betas=st.tuples(BETAS, BETAS),
    eps=st.sampled_from([1e-8, 1e-3]),
    decay=DECAYS,
    decoupled=st.booleans(),
    backend=st.sampled_from(BACKENDS),
)
def test_adam_is_its_formula(seed, lr, betas, eps, decay, decoupled, backend):
    values, gradients = gradients_of(seed, 5, [(3, 2), (4,)])
    parameters = [parameter(v, backend, f"p{i}") for i, v in enumerate(values)]
    optimizer = (AdamW if decoupled else Adam)(parameters, lr, betas, eps, decay)
    w, m, v = values[0], 0, 0
    for t, step in enumerate(run(optimizer, parameters, gradients), start=1):
        g = gradients[t - 1][0] + (0 if decoupled else decay * w)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        move = (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        w = w - lr * move - (lr * decay * w if decoupled else 0)
        np.testing.assert_allclose(step, w, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, 0.9), Adam, AdamW])
def test_float32_stays_float32(make, backend):
    p = parameter([1.0, 2.0], backend, dtype=np.float32)
    (value,) = run(make([p]), [p], [[[0.5, -0.5]]])
    assert value.dtype == np.float32
    assert value[0] < 1 and value[1] > 2


def test_running_statistics_are_left_alone(backend):
    trained, running = parameter([1.0], backend), parameter([5.0], backend, "r", trainable=False)
    optimizer = SGD([trained, running], 0.1)
    assert optimizer.parameters == [trained]
    trained.grad = np.ones(1)
    optimizer.step()
    assert running.value == 5


def test_the_learning_rate_can_change_between_steps(backend):
    p = parameter([1.0], backend)
    optimizer = SGD([p], 0.1)
    p.grad = np.ones(1)
    optimizer.step()
    optimizer.lr = 0.5
    optimizer.step()
    assert p.value == pytest.approx(0.4)
    assert optimizer.steps == 2


@pytest.mark.parametrize(
    "make", [lambda p: SGD(p, 0.1, 0.9), lambda p: SGD(p, 0.1), Adam, AdamW], ids=range(4)
)
def test_the_state_continues_bit_for_bit(make, backend):
    values, gradients = gradients_of(0, 6, [(3, 2), (4,)])

    def fresh():
        parameters = [parameter(v, backend, f"p{i}", np.float32) for i, v in enumerate(values)]
        return parameters, make(parameters)

    whole, optimizer = fresh()
    run(optimizer, whole, gradients)
    first, optimizer = fresh()
    run(optimizer, first, gradients[:3])
    state, kept = optimizer.state(), [p.value.copy() for p in first]
    run(optimizer, first, gradients[3:])  # which leaves the state as it is
    second, optimizer = fresh()
    for p, value in zip(second, kept, strict=True):
        p.value[...] = value
    optimizer.load_state(state)
    run(optimizer, second, gradients[3:])
    for p, q in zip(whole, second, strict=True):
        np.testing.assert_array_equal(p.value, q.value)


def test_a_state_that_does_not_fit_is_refused():
    state = Adam([parameter([1.0, 2.0])]).state()
    assert set(state) == {"steps", "m.0", "v.0"}
    with pytest.raises(CheckpointError, match=r"m\.0 has shape \(2,\) instead of \(1,\)"):
        Adam([parameter([1.0])]).load_state(state)
    with pytest.raises(CheckpointError, match="velocity.0 is missing"):
        SGD([parameter([1.0, 2.0])], 0.1).load_state(state)


def test_parameters_of_one_name_are_told_apart_by_their_place():
    first, second = parameter([1.0]), parameter([2.0])
    optimizer = SGD([first, second], 0.1, momentum=0.9)
    first.grad, second.grad = np.array([3.0]), np.array([4.0])
    optimizer.step()
    state = optimizer.state()
    assert (state["velocity.0"], state["velocity.1"]) == (3.0, 4.0)


def test_what_are_no_parameters_is_refused():
    network = Dense(2, 2)
    for wrong, got in ((network, "Dense"), ([np.ones(2)], "ndarray"), (3, "int")):
        with pytest.raises(TypeError, match=rf"network\.parameters\(\).* got {got}"):
            Adam(wrong)
    with pytest.raises(ValueError, match="Adam: a parameter is given twice"):
        Adam(network.parameters() * 2)
    with pytest.raises(TypeError, match="clip_gradients: parameters .* got Dense"):
        clip_gradients(network, 1.0)


def test_a_step_without_gradients_names_the_parameter():
    p, q = parameter([1.0]), parameter([2.0], name="0.bias")
    optimizer = SGD([p, q], 0.1)
    p.grad = np.ones(1)
    with pytest.raises(RuntimeError, match="0.bias has no gradient: run backward first"):
        optimizer.step()
    assert p.value == 1 and optimizer.steps == 0


BAD_NUMBERS = [math.nan, math.inf, -0.1, "0.1", None]


@pytest.mark.parametrize("number", BAD_NUMBERS)
@pytest.mark.parametrize("make", [SGD, Adam, AdamW])
def test_bad_learning_rates(make, number):
    with pytest.raises(ValueError, match=f"{make.__name__}: lr must be a number of at least 0"):
        make([parameter([1.0])], number)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: SGD(p, 0.1, momentum=1.1), "SGD: momentum must be a number"),
        (lambda p: SGD(p, 0.1, weight_decay=-1), "SGD: weight_decay must be a number"),
        (lambda p: Adam(p, betas=(1, 0.9)), r"Adam: betas must be a number in \[0, 1\), got 1"),
        (lambda p: Adam(p, betas=(0.9, math.nan)), "Adam: betas must be a number"),
        (lambda p: Adam(p, betas=(0.9,)), "Adam: betas must be two numbers"),
        (lambda p: Adam(p, betas=0.9), "Adam: betas must be two numbers, got 0.9"),
        (lambda p: Adam(p, eps=0), "Adam: eps must be a number above 0"),
        (lambda p: AdamW(p, weight_decay=math.nan), "AdamW: weight_decay must be a number"),
        (lambda p: Adam([]), "Adam: there are no trainable parameters"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make([parameter([1.0])])


def with_gradient(value, gradient, **settings):
    made = parameter(value, **settings)
    made.grad = np.array(gradient, made.value.dtype)
    return made


def test_clipping_scales_all_gradients_together():
    parameters = [with_gradient([0, 0], [3, 0]), with_gradient([0], [4])]
    assert clip_gradients(parameters, 1.0) == pytest.approx(5)
    np.testing.assert_allclose(parameters[0].grad, [0.6, 0])
    np.testing.assert_allclose(parameters[1].grad, [0.8])
    assert clip_gradients(parameters, 1.5) == pytest.approx(1)
    np.testing.assert_allclose(parameters[1].grad, [0.8])


@given(seed=st.integers(0, 99), max_norm=st.floats(1e-3, 10))
def test_the_norm_is_bounded_and_the_direction_kept(seed, max_norm):
    rng = np.random.default_rng(seed)
    before = [rng.standard_normal(shape) for shape in ((2, 3), (4,))]
    parameters = [with_gradient(np.zeros_like(g), g) for g in before]
    norm = clip_gradients(parameters, max_norm)
    assert norm == pytest.approx(math.sqrt(sum((g**2).sum() for g in before)))
    factor = min(1, max_norm / norm)
    for g, p in zip(before, parameters, strict=True):
        np.testing.assert_allclose(p.grad, factor * g, rtol=1e-12)


def test_clipping_leaves_out_what_is_not_trained():
    running = with_gradient([0], [100], trainable=False)
    parameters = [with_gradient([0], [2]), running, parameter([1.0])]
    assert clip_gradients(parameters, 1.0) == pytest.approx(2)
    assert running.grad == 100


@pytest.mark.parametrize("max_norm", [0, -1, math.nan, "1"])
def test_bad_norms(max_norm):
    with pytest.raises(ValueError, match="clip_gradients: max_norm must be a number above 0"):
        clip_gradients([with_gradient([0], [1])], max_norm)


def test_clipping_scales_gradients_whose_squares_overflow():
    large = parameter(np.zeros((2, 2)), dtype=np.float32)
    large.grad = np.full((2, 2), 1e20, np.float32)
    assert clip_gradients([large], 1.0) == pytest.approx(2e20, rel=1e-6)
    np.testing.assert_allclose(large.grad, 0.5, rtol=1e-6)


def test_what_changes_in_place_can_be_written():
    value, other = np.ones(3, np.float32), np.zeros(3, np.float32)
    other.flags.writeable = False
    for arrays in ((value, value, other), (other, value, value)):
        with pytest.raises(ValueError, match="C-contiguous and writeable"):
            cpu.sgd_update(*arrays, 0.1, 0.9, False, 0.0)
    np.testing.assert_array_equal(value, np.ones(3))
