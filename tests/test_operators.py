"""Every operator of every backend, by being listed in `scratchnet.backends` and having a case."""

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import checks
import numba
import numpy as np
import oracle
import pytest
from cases import CASES, SHARED_OUT, UPDATE_CASES, generator
from checks import cotangent_like, run_backward, run_forward
from hypothesis import given
from hypothesis import strategies as st

from scratchnet.backends import (
    BACKENDS,
    HELPERS,
    OPERATORS,
    UPDATES,
    cpu,
    get_backend,
    reference,
)
from scratchnet.machine import set_threads

FUNCTIONS = [f"{op}_{way}" for op in OPERATORS for way in ("forward", "backward")] + [*UPDATES]
FLOATS = (np.float32, np.float64)

every_operator = pytest.mark.parametrize("operator", OPERATORS)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.__name__)
# The reference in float64 is what others are compared with.
compared = pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        pytest.param(backend, dtype, id=f"{backend}-{dtype.__name__}")
        for backend in BACKENDS
        for dtype in FLOATS
        if (backend, dtype) != ("reference", np.float64)
    ],
)
drawn = given(data=st.data())


def _nasties(operators=OPERATORS):
    """Each operator with each of its nasty sizes, and with its large one."""
    return pytest.mark.parametrize(
        ("operator", "sizes"),
        [
            pytest.param(operator, sizes, id=f"{operator}-{i}")
            for operator in operators
            for i, sizes in enumerate((*CASES[operator].nasties, CASES[operator].large))
        ],
    )


def _drawn(data, operator):
    sizes = data.draw(CASES[operator].sizes, label=operator)
    return CASES[operator].draw(sizes), sizes["seed"]


# What is listed is there


def test_every_operator_has_a_case():
    assert set(OPERATORS) <= set(CASES)
    assert set(UPDATES) <= set(UPDATE_CASES)
    for operator, case in CASES.items():
        assert case.hands and case.nasties, operator


@every_backend
@pytest.mark.parametrize("function", FUNCTIONS)
def test_signature_is_that_of_the_reference(backend, function):
    expected = inspect.signature(getattr(reference, function)).parameters
    found = inspect.signature(getattr(get_backend(backend), function)).parameters
    assert [(p.name, p.default) for p in found.values()] == [
        (p.name, p.default) for p in expected.values()
    ]


@every_backend
def test_backend_exports_what_is_listed_and_nothing_else(backend):
    exported = importlib.import_module(f"scratchnet.backends.{backend}").__all__
    assert sorted(exported) == sorted([*FUNCTIONS, *HELPERS])


# Right values


@every_dtype
@every_backend
@every_operator
def test_values_worked_by_hand(operator, backend, dtype):
    checks.check_by_hand(get_backend(backend), operator, dtype)


@compared
@every_operator
@drawn
def test_agrees_with_the_reference(operator, backend, dtype, data):
    arguments, seed = _drawn(data, operator)
    checks.check_parity(get_backend(backend), reference, operator, arguments, dtype, seed)


@compared
@_nasties()
def test_agrees_with_the_reference_on_nasties(operator, sizes, backend, dtype):
    arguments = CASES[operator].draw(sizes)
    checks.check_parity(get_backend(backend), reference, operator, arguments, dtype, sizes["seed"])


@pytest.mark.parametrize("operator", [op for op in OPERATORS if CASES[op].kinks])
@drawn
def test_agrees_with_the_reference_on_kinks_and_ties(operator, data):
    sizes = data.draw(CASES[operator].sizes, label=operator)
    arguments = CASES[operator].kinks(generator(sizes["seed"], "kinks"), sizes)
    checks.check_parity(cpu, reference, operator, arguments, np.float64, sizes["seed"])


@compared
@pytest.mark.parametrize("operator", [op for op in OPERATORS if CASES[op].forward_only])
@drawn
def test_forward_without_backward_agrees_with_the_reference(operator, backend, dtype, data):
    sizes = data.draw(CASES[operator].sizes, label=operator)
    arguments = CASES[operator].forward_only(generator(sizes["seed"], "forward"), sizes)
    checks.check_forward_parity(get_backend(backend), reference, operator, arguments, dtype)


@every_backend
@pytest.mark.parametrize("operator", oracle.OPERATORS)
@drawn
def test_agrees_with_plain_loops(operator, backend, data):
    arguments, seed = _drawn(data, operator)
    checks.check_parity(get_backend(backend), oracle, operator, arguments, np.float64, seed)


@every_backend
@pytest.mark.parametrize("operator", oracle.OPERATORS)
def test_agrees_with_plain_loops_on_nasties(operator, backend):
    for sizes in CASES[operator].nasties:
        arguments = CASES[operator].draw(sizes)
        checks.check_parity(get_backend(backend), oracle, operator, arguments, np.float64, 7)


# Right gradients


@every_backend
@every_operator
@drawn
def test_gradient(operator, backend, data):
    checks.check_gradient(get_backend(backend), operator, *_drawn(data, operator))


@every_backend
@every_operator
def test_gradient_on_nasties(operator, backend):
    for sizes in CASES[operator].nasties:
        arguments = CASES[operator].draw(sizes)
        checks.check_gradient(get_backend(backend), operator, arguments, sizes["seed"])


@every_backend
@pytest.mark.parametrize("operator", [op for op in OPERATORS if CASES[op].linear])
@drawn
def test_backward_is_the_adjoint_of_a_linear_forward(operator, backend, data):
    checks.check_adjoint(get_backend(backend), operator, *_drawn(data, operator))


@every_backend
@pytest.mark.parametrize("operator", [op for op in OPERATORS if CASES[op].homogeneous])
@drawn
def test_euler_identity_of_a_homogeneous_forward(operator, backend, data):
    checks.check_homogeneous(get_backend(backend), operator, *_drawn(data, operator))


@pytest.mark.parametrize(("operator", "sizes"), SHARED_OUT)
def test_work_that_is_shared_out(operator, sizes):
    arguments = CASES[operator].draw(sizes)
    checks.check_parity(
        get_backend("cpu"), reference, operator, arguments, np.float32, sizes["seed"]
    )


@every_backend
def test_what_is_not_finite_stays_in_its_group(backend):
    ops, rng = get_backend(backend), np.random.default_rng(0)
    x, dy = rng.standard_normal((1, 5, 4, 4)), rng.standard_normal((1, 5, 4, 6))
    weight = rng.standard_normal((3, 3, 2, 6))
    found = []
    for value in (1.0, np.inf):
        x[0, 2, 1, 0] = dy[0, 2, 1, 0] = value
        with np.errstate(invalid="ignore"):
            y = ops.conv2d_forward(x, weight, None, 1, "same")
            dx, dweight, dbias = ops.conv2d_backward(dy, x, weight, 1, "same")
        assert np.isfinite(y).all() == np.isfinite(dx).all() == (value == 1)
        found.append((y[..., 3:], dx[..., 2:], dweight[..., 3:], dbias[3:]))
    for finite, beside_infinity in zip(*found, strict=True):
        np.testing.assert_allclose(beside_infinity, finite, rtol=1e-12)


# Good manners


@every_backend
@every_operator
@drawn
def test_pure_and_repeatable(operator, backend, data):
    checks.check_pure(get_backend(backend), operator, *_drawn(data, operator))


@every_dtype
@every_backend
@every_operator
def test_same_bits_however_often(operator, backend, dtype):
    case = CASES[operator]
    arguments = checks.cast(case.draw(case.large), dtype)
    checks.check_pure(get_backend(backend), operator, arguments, case.large["seed"], times=8)


@every_operator
def test_arrays_may_have_gaps(operator):
    for sizes in (*CASES[operator].nasties, CASES[operator].large):
        arguments = checks.cast(CASES[operator].draw(sizes), np.float32)
        checks.check_strided(cpu, operator, arguments, sizes["seed"])


@pytest.mark.skipif(os.name == "nt", reason="there is no mprotect")
def test_nothing_is_touched_behind_the_arrays():
    """Every operator, in a process that dies where one of them reads or writes too far."""
    program = Path(__file__).with_name("guarded.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert done.stdout.endswith("done\n"), done.stdout + done.stderr


@every_operator
def test_same_bits_with_any_number_of_threads(operator):
    case = CASES[operator]
    alone, together = [], []
    for threads, found in ((1, alone), (numba.config.NUMBA_NUM_THREADS, together)):
        set_threads(threads)
        for sizes in (case.large, *(sizes for name, sizes in SHARED_OUT if name == operator)):
            arguments = checks.cast(case.draw(sizes), np.float32)
            outputs = run_forward(cpu, operator, arguments)
            cotangent = cotangent_like(next(iter(outputs.values())), 1)
            gradients = run_backward(cpu, operator, arguments, outputs, cotangent)
            found += [*outputs.values(), *gradients.values()]
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, two)


@every_backend
@every_operator
@drawn
def test_need_dx(operator, backend, data):
    checks.check_need_dx(get_backend(backend), operator, *_drawn(data, operator))


@every_backend
@every_operator
@drawn
def test_nan_does_not_vanish(operator, backend, data):
    checks.check_nan(get_backend(backend), reference, operator, *_drawn(data, operator))


# Values at the edge of what float32 holds


@every_backend
@pytest.mark.parametrize("operator", ["batchnorm"])
def test_variance_of_values_far_from_zero(operator, backend):
    rng = np.random.default_rng(0)
    x = (1e4 + rng.standard_normal((64, 32, 32, 3))).astype(np.float32)
    gamma, beta = np.ones(3, np.float32), np.zeros(3, np.float32)
    exact = reference.batchnorm_forward(*(a.astype(np.float64) for a in (x, gamma, beta)), eps=1e-3)
    y, mean, inv_std = get_backend(backend).batchnorm_forward(x, gamma, beta, 1e-3)
    np.testing.assert_allclose(mean, exact[1], rtol=1e-6)
    np.testing.assert_allclose(inv_std, exact[2], rtol=1e-4)
    np.testing.assert_allclose(y, exact[0], atol=2e-3)


@every_backend
@pytest.mark.parametrize("hidden", [1, 3])
@pytest.mark.parametrize("operator", ["generated_involution"])
def test_variance_with_a_first_image_unlike_the_others(operator, hidden, backend):
    """A pass that takes deviations from a sample's mean must not rely on the sample."""
    rng = np.random.default_rng(0)
    x = (1e4 + rng.standard_normal((64, 16, 16, 3))).astype(np.float32)
    x[0] = 0
    arguments = {
        "x": x,
        "reduce_weight": np.tile(np.float32([[1], [2], [-1]]), hidden)[None, None],
        "reduce_bias": np.ones(hidden, np.float32),
        "gamma": np.ones(hidden, np.float32),
        "beta": np.zeros(hidden, np.float32),
        "span_weight": np.ones((1, 1, hidden, 9), np.float32),
        "span_bias": np.zeros(9, np.float32),
    }
    exact = reference.generated_involution_forward(
        **{name: array.astype(np.float64) for name, array in arguments.items()},
        K=3, stride=1, dilation=1, eps=1e-3,
    )  # fmt: skip
    _, mean, inv_std = get_backend(backend).generated_involution_forward(
        **arguments, K=3, stride=1, dilation=1, eps=1e-3
    )
    np.testing.assert_allclose(mean, exact[1], rtol=1e-6)
    np.testing.assert_allclose(inv_std, exact[2], rtol=1e-4)


@every_dtype
@every_backend
def test_softmax_of_large_logits(backend, dtype):
    ops = get_backend(backend)
    logits = np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4]], dtype)
    labels = np.array([1, 2])
    loss, probabilities = ops.softmax_cross_entropy_forward(logits, labels)
    np.testing.assert_allclose(loss, (1e4 + np.log(3)) / 2, rtol=1e-6)
    np.testing.assert_allclose(probabilities, [[1, 0, 0], [1 / 3] * 3], rtol=1e-6)
    dlogits = ops.softmax_cross_entropy_backward(2.0, probabilities, labels)
    np.testing.assert_allclose(dlogits, [[1, -1, 0], [1 / 3, 1 / 3, -2 / 3]], rtol=1e-6)


@every_dtype
@every_backend
@pytest.mark.parametrize(
    ("query", "taps"),
    [(100, [5, 4, 3]), (-100, [4, 3, 4])],  # scores of 0, 10,000 and 5,000, or below 0
)
def test_attention_of_scores_far_apart(query, taps, backend, dtype):
    q = np.full((1, 1, 3, 1), query, dtype)
    k = np.array([0, 100, 50], dtype).reshape(1, 1, 3, 1)
    kernel = get_backend(backend).attention_kernel_forward(q, k, None, 3, 1)
    np.testing.assert_array_equal(kernel.reshape(3, 9), np.eye(9)[taps])


@every_backend
def test_dropout_drops_at_its_rate_and_keeps_the_mean(backend):
    x = np.ones((100, 1000), np.float32)
    y = get_backend(backend).dropout_forward(x, 0.3, 99)
    dropped = float((y == 0).mean())
    assert abs(dropped - 0.3) < 0.005  # 3.5 standard deviations of 100,000 draws
    assert abs(float(y.mean()) - 1) < 0.01
    assert not np.array_equal(y, get_backend(backend).dropout_forward(x, 0.3, 100))


# Updates


@every_dtype
@every_backend
@pytest.mark.parametrize("update", UPDATES)
def test_update_worked_by_hand(update, backend, dtype):
    for hand in UPDATE_CASES[update].hands:
        checks.check_update_by_hand(get_backend(backend), update, hand, dtype)


@every_dtype
@every_backend
@pytest.mark.parametrize("update", UPDATES)
@drawn
def test_update_agrees_with_the_reference(update, backend, dtype, data):
    case = UPDATE_CASES[update]
    sizes = data.draw(case.sizes, label=update)
    found = checks.cast(case.arguments(np.random.default_rng(sizes["seed"]), sizes), dtype)
    expected = {k: v.astype(float) if hasattr(v, "dtype") else v for k, v in found.items()}
    twin = {k: v.copy() if hasattr(v, "dtype") else v for k, v in found.items()}
    for step in range(1, 4):  # the later steps start from what the first left in the arrays
        stepped = {"step": step} if "step" in found else {}
        assert getattr(get_backend(backend), update)(**(found | stepped)) is None
        getattr(get_backend(backend), update)(**(twin | stepped))
        getattr(reference, update)(**(expected | stepped))
    for name, value in expected.items():
        if hasattr(value, "dtype"):
            assert found[name].dtype == dtype
            np.testing.assert_array_equal(found[name], twin[name], err_msg=name)
            checks.assert_close(found[name], value, checks.tolerance(dtype, 9), name)
