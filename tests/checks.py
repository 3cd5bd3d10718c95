"""What the tests ask of an operator. `ops` is any module that has it: a backend, or a mutant.

Each function raises AssertionError where `ops` fails. They know operators only by their `Case` and
the signatures of their functions, so a new operator needs no new check.
"""

import inspect
from typing import Any

import numpy as np
from cases import CASES, Arguments, generator

from scratchnet.gradcheck import check_gradients


def run_forward(ops: Any, operator: str, arguments: Arguments) -> dict[str, Any]:
    """forward's results by name."""
    names = CASES[operator].outputs
    result = getattr(ops, f"{operator}_forward")(**arguments)
    results = result if isinstance(result, tuple) else (result,)
    assert len(results) == len(names), f"{operator}_forward returned {len(results)} results"
    return dict(zip(names, results, strict=True))


def run_backward(
    ops: Any,
    operator: str,
    arguments: Arguments,
    outputs: dict[str, Any],
    cotangent: Any,
    **options: Any,
) -> dict[str, Any]:
    """backward's results by the name of what they are the gradient of."""
    names = CASES[operator].gradients
    function = getattr(ops, f"{operator}_backward")
    result = function(**_bind(function, operator, arguments, outputs, cotangent), **options)
    results = result if isinstance(result, tuple) else (result,)
    assert len(results) == len(names), f"{operator}_backward returned {len(results)} results"
    return dict(zip(names, results, strict=True))


def _bind(
    function: Any, operator: str, arguments: Arguments, outputs: dict[str, Any], cotangent: Any
) -> dict[str, Any]:
    """backward's arguments, each found by its name: dy, what forward took, what it returned."""
    known = {f"{name}_shape": a.shape for name, a in arguments.items() if hasattr(a, "shape")}
    known |= {**arguments, **outputs, f"d{CASES[operator].outputs[0]}": cotangent}
    names = inspect.signature(function).parameters
    return {name: known[name] for name in names if name in known}


def cotangent_like(output: Any, seed: int) -> Any:
    """A random upstream gradient for forward's first result."""
    rng = generator(seed, "cotangent")
    if np.ndim(output) == 0:
        return float(rng.standard_normal())
    return rng.standard_normal(output.shape).astype(output.dtype)


def differentiable(operator: str, arguments: Arguments) -> list[str]:
    """The arguments that are there and have a gradient."""
    return [name for name in CASES[operator].gradients if arguments.get(name) is not None]


def cast(arguments: Arguments, dtype: type) -> Arguments:
    """The arguments with their float arrays in that dtype, C-contiguous."""

    def converted(value: Any) -> Any:
        is_float = isinstance(value, np.ndarray) and value.dtype.kind == "f"
        return np.ascontiguousarray(value, dtype) if is_float else value

    return {name: converted(value) for name, value in arguments.items()}


def tolerance(dtype: Any, terms: int) -> float:
    """The error of a sum of so many terms: rounding errors of random sign add up as a root.

    16 units in the last place leave room for intermediate values that are larger than the result.
    """
    return 16 * float(np.finfo(dtype).eps) * max(terms, 1) ** 0.5


def _terms(arguments: Arguments, outputs: dict[str, Any]) -> int:
    """No sum in forward or backward runs over more terms than the largest array has values."""
    return max(np.size(value) for value in (*arguments.values(), *outputs.values()))


def assert_close(actual: Any, expected: Any, rtol: float, what: str) -> None:
    """Equal up to rtol of the largest value, or of 1 where all are smaller."""
    if expected is None:
        assert actual is None, f"{what}: {actual!r}, not None"
        return
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    if expected.dtype.kind in "iu":
        np.testing.assert_array_equal(actual, expected, err_msg=what)
        return
    atol = rtol * max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=what)


def check_by_hand(ops: Any, operator: str, dtype: type = np.float64) -> None:
    """Forward and backward give the values worked by hand."""
    for hand in CASES[operator].hands:
        arguments = cast(hand.arguments, dtype)
        rtol = tolerance(dtype, _terms(arguments, hand.outputs))
        outputs = run_forward(ops, operator, arguments)
        for name, expected in hand.outputs.items():
            assert_close(outputs[name], expected, rtol, f"{operator}: {name}")
        cotangent = cast({"dy": hand.cotangent}, dtype)["dy"]
        gradients = run_backward(ops, operator, arguments, outputs, cotangent)
        for name, expected in hand.gradients.items():
            assert_close(gradients[name], expected, rtol, f"{operator}: d{name}")


def check_update_by_hand(ops: Any, update: str, hand: tuple, dtype: type) -> None:
    """An optimizer step leaves the values worked by hand in its arrays."""
    arguments, expected = cast(hand[0], dtype), hand[1]
    arguments = {k: v.copy() if _is_array(v) else v for k, v in arguments.items()}
    getattr(ops, update)(**arguments)
    for name, value in expected.items():
        assert_close(arguments[name], value, tolerance(dtype, 1), f"{update}: {name}")


def check_gradient(ops: Any, operator: str, arguments: Arguments, seed: int) -> None:
    """Backward agrees with central differences of forward, in float64."""
    names = differentiable(operator, arguments)
    fixed = {name: value for name, value in arguments.items() if name not in names}

    def forward(**moving: np.ndarray) -> Any:
        return next(iter(run_forward(ops, operator, moving | fixed).values()))

    def backward(dy: Any, **moving: np.ndarray) -> dict[str, Any]:
        outputs = run_forward(ops, operator, moving | fixed)
        gradients = run_backward(ops, operator, moving | fixed, outputs, dy)
        return {name: gradients[name] for name in names}

    inputs = {name: arguments[name] for name in names}
    check_gradients(forward, backward, inputs, seed=seed, elements=16)


def check_adjoint(ops: Any, operator: str, arguments: Arguments, seed: int) -> None:
    """<f(t) - f(0), dy> == <t, df(dy)> for what forward is linear in: no step size, to 1e-12."""
    rng = generator(seed, "adjoint")
    for group in CASES[operator].linear:
        names = [name for name in group if arguments[name] is not None]
        moved = {name: rng.standard_normal(arguments[name].shape) for name in names}
        nothing = {name: np.zeros_like(arguments[name]) for name in names}
        y = _first(ops, operator, arguments | moved) - _first(ops, operator, arguments | nothing)
        dy = rng.standard_normal(y.shape)
        outputs = run_forward(ops, operator, arguments)
        gradients = run_backward(ops, operator, arguments, outputs, dy)
        _assert_same_product(y, dy, moved, gradients, f"{operator}, linear in {', '.join(names)}")


def check_homogeneous(ops: Any, operator: str, arguments: Arguments, seed: int) -> None:
    """<y, dy> == <x, dx>, Euler's identity, for what forward is homogeneous of degree 1 in."""
    for group in CASES[operator].homogeneous:
        names = [name for name in group if arguments[name] is not None]
        outputs = run_forward(ops, operator, arguments)
        y = next(iter(outputs.values()))
        dy = cotangent_like(y, seed)
        gradients = run_backward(ops, operator, arguments, outputs, dy)
        held = {name: arguments[name] for name in names}
        _assert_same_product(y, dy, held, gradients, f"{operator}, {', '.join(names)}")


def _first(ops: Any, operator: str, arguments: Arguments) -> Any:
    return next(iter(run_forward(ops, operator, arguments).values()))


def _assert_same_product(y: Any, dy: Any, arrays: dict, gradients: dict, what: str) -> None:
    forward = y * dy
    backward = [arrays[name] * gradients[name] for name in arrays]
    scale = float(np.abs(forward).sum() + sum(np.abs(product).sum() for product in backward))
    difference = float(forward.sum() - sum(product.sum() for product in backward))
    assert abs(difference) <= 1e-12 * scale, f"{what}: <y, dy> and <x, dx> differ by {difference}"


def check_parity(
    ops: Any, truth: Any, operator: str, arguments: Arguments, dtype: type, seed: int
) -> None:
    """Forward and backward agree with `truth`, which computes in float64, and keep the dtype."""
    arguments = cast(arguments, dtype)
    outputs = run_forward(ops, operator, arguments)
    cotangent = cotangent_like(outputs[CASES[operator].outputs[0]], seed)
    gradients = run_backward(ops, operator, arguments, outputs, cotangent)
    found = outputs | {f"d{name}": gradient for name, gradient in gradients.items()}
    exact, exact_cotangent = _in_float64(arguments, cotangent)
    expected = _forward_and_backward(truth, operator, exact, exact_cotangent)
    disturbed = _forward_and_backward(truth, operator, *_disturbed(exact, exact_cotangent, seed))
    _compare_all(operator, found, expected, disturbed, dtype, _terms(arguments, outputs))


def check_forward_parity(
    ops: Any, truth: Any, operator: str, arguments: Arguments, dtype: type
) -> None:
    """Forward agrees with `truth`, for arguments that have no backward."""
    arguments = cast(arguments, dtype)
    found = run_forward(ops, operator, arguments)
    exact = cast(arguments, np.float64)
    expected = run_forward(truth, operator, exact)
    disturbed = run_forward(truth, operator, _disturbed(exact, 0.0, 0)[0])
    _compare_all(operator, found, expected, disturbed, dtype, _terms(arguments, found))


_DISTURBANCE = 2.0**-24


def _compare_all(
    operator: str, found: dict, expected: dict, disturbed: dict, dtype: type, terms: int
) -> None:
    """Each array within the tolerance, times what a disturbance of the inputs grows by in it.

    A batch norm of values that hardly differ, say, magnifies the rounding of its inputs; no
    implementation can do better.
    """
    for name, value in expected.items():
        what = f"{operator}: {name}"
        _assert_dtype(found[name], value, dtype, what)
        growth = 1.0
        if value is not None and np.size(value) and np.asarray(value).dtype.kind == "f":
            scale = max(1.0, float(np.abs(value).max()))
            change = float(np.abs(disturbed[name] - value).max())
            growth = max(1.0, change / (_DISTURBANCE * scale))
        if value is None:
            assert found[name] is None, what
        else:
            assert_close(found[name], value, growth * tolerance(dtype, terms), what)


def _forward_and_backward(
    ops: Any, operator: str, arguments: Arguments, cotangent: Any
) -> dict[str, Any]:
    outputs = run_forward(ops, operator, arguments)
    gradients = run_backward(ops, operator, arguments, outputs, cotangent)
    return outputs | {f"d{name}": gradient for name, gradient in gradients.items()}


def _in_float64(arguments: Arguments, cotangent: Any) -> tuple[Arguments, Any]:
    return cast(arguments, np.float64), cast({"dy": cotangent}, np.float64)["dy"]


def _disturbed(arguments: Arguments, cotangent: Any, seed: int) -> tuple[Arguments, Any]:
    """All values changed in their last bits, as rounding to float32 would."""
    rng = generator(seed, "disturbance")

    def change(value: Any) -> Any:
        if not _is_array(value) or value.dtype.kind != "f":
            return value
        return value * (1 + _DISTURBANCE * rng.standard_normal(value.shape))

    return {name: change(value) for name, value in arguments.items()}, change(cotangent)


def _assert_dtype(actual: Any, expected: Any, dtype: type, what: str) -> None:
    if isinstance(expected, np.ndarray):
        wanted = dtype if expected.dtype.kind == "f" else expected.dtype
        assert isinstance(actual, np.ndarray), f"{what} is {type(actual).__name__}, not an array"
        assert actual.dtype == wanted, f"{what} is {actual.dtype}, not {np.dtype(wanted)}"
        assert actual.flags.c_contiguous, f"{what} is not C-contiguous"


def check_pure(ops: Any, operator: str, arguments: Arguments, seed: int, times: int = 2) -> None:
    """The same bits every time, nothing handed in changed, results that later calls leave alone."""
    kept = _copies(arguments)
    outputs = run_forward(ops, operator, arguments)
    cotangent = cotangent_like(outputs[CASES[operator].outputs[0]], seed)
    kept_outputs, kept_cotangent = _copies(outputs), np.copy(cotangent)
    gradients = run_backward(ops, operator, arguments, outputs, cotangent)
    kept_gradients = _copies(gradients)
    _assert_same_bits(outputs, kept_outputs, f"{operator}: backward changed what forward returned")
    for _ in range(times - 1):
        again = run_forward(ops, operator, arguments)
        _assert_same_bits(again, kept_outputs, f"{operator}_forward the second time")
        twice = run_backward(ops, operator, arguments, again, cotangent)
        _assert_same_bits(twice, kept_gradients, f"{operator}_backward the second time")
    _assert_same_bits(arguments, kept, f"{operator} changed its arguments")
    np.testing.assert_array_equal(cotangent, kept_cotangent, f"{operator} changed dy")

    # Only views of the first results are left: their memory must not be handed out again.
    views = {name: value[...] for name, value in (outputs | gradients).items() if _is_array(value)}
    expected = {name: (kept_outputs | kept_gradients)[name] for name in views}
    del outputs, gradients, again, twice
    other = {
        name: value + 1 if _is_array(value) and value.dtype.kind == "f" else value
        for name, value in arguments.items()
    }
    for _ in range(3):
        run_backward(ops, operator, other, run_forward(ops, operator, other), cotangent)
    _assert_same_bits(views, expected, f"{operator}: a later call wrote over an earlier result")


def check_strided(ops: Any, operator: str, arguments: Arguments, seed: int) -> None:
    """Arrays with gaps between their elements are read as if they had none."""
    outputs = run_forward(ops, operator, arguments)
    cotangent = cotangent_like(outputs[CASES[operator].outputs[0]], seed)
    gradients = run_backward(ops, operator, arguments, outputs, cotangent)
    apart = _apart(arguments)
    _assert_same_bits(run_forward(ops, operator, apart), outputs, f"{operator}_forward of views")
    again = run_backward(ops, operator, apart, _apart(outputs), *_apart({"": cotangent}).values())
    _assert_same_bits(again, gradients, f"{operator}_backward of views")


def _apart(arrays: Arguments) -> Arguments:
    """The arrays as views of every other element of larger ones, with NaN between them."""

    def view(value: Any) -> Any:
        if not _is_array(value) or not value.ndim:
            return value
        nothing = np.nan if value.dtype.kind == "f" else 1
        wide = np.full((*value.shape[:-1], 2 * value.shape[-1]), nothing, value.dtype)
        wide[..., ::2] = value
        return wide[..., ::2]

    return {name: view(value) for name, value in arrays.items()}


def check_need_dx(ops: Any, operator: str, arguments: Arguments, seed: int) -> None:
    """need_dx=False gives None for dx, and the other gradients as before."""
    function = getattr(ops, f"{operator}_backward")
    if "need_dx" not in inspect.signature(function).parameters:
        return
    outputs = run_forward(ops, operator, arguments)
    cotangent = cotangent_like(outputs[CASES[operator].outputs[0]], seed)
    full = run_backward(ops, operator, arguments, outputs, cotangent)
    less = run_backward(ops, operator, arguments, outputs, cotangent, need_dx=False)
    assert less.pop("x") is None, f"{operator}: dx was computed with need_dx=False"
    for name, gradient in less.items():
        rtol = tolerance(gradient.dtype, _terms(arguments, outputs))
        assert_close(gradient, full[name], rtol, f"{operator}: d{name} with need_dx=False")


def check_nan(ops: Any, truth: Any, operator: str, arguments: Arguments, seed: int) -> None:
    """A NaN in an argument, or in dy, comes out wherever a large change of that value shows.

    Padding is not such a place: a fast backend may skip the product with 0 that `truth` takes.
    """
    rng = generator(seed, "nan")
    outputs = run_forward(truth, operator, arguments)
    y = outputs[CASES[operator].outputs[0]]
    for name in differentiable(operator, arguments):
        index = rng.integers(arguments[name].size)
        spoilt, *changed = (_with(arguments, name, index, value) for value in (np.nan, 1e3, -1e3))
        up, down = (_first(truth, operator, values) for values in changed)
        _assert_nan_where(
            (up != y) | (down != y), _first(ops, operator, spoilt), f"{operator}: in {name}"
        )
    dy = np.asarray(cotangent_like(y, seed))
    index = rng.integers(dy.size)
    spoilt_dy = [_with({"dy": dy}, "dy", index, value)["dy"] for value in (np.nan, 1e3)]
    nan_dy, large_dy = (value if value.ndim else float(value) for value in spoilt_dy)
    expected = run_backward(truth, operator, arguments, outputs, dy if dy.ndim else float(dy))
    changed = run_backward(truth, operator, arguments, outputs, large_dy)
    outputs = run_forward(ops, operator, arguments)
    gradients = run_backward(ops, operator, arguments, outputs, nan_dy)
    for name in differentiable(operator, arguments):
        _assert_nan_where(
            changed[name] != expected[name], gradients[name], f"{operator}: in dy, for d{name}"
        )


def _with(arguments: Arguments, name: str, index: int, value: float) -> Arguments:
    changed = arguments[name].copy()
    changed.flat[index] = value
    return arguments | {name: changed}


def _assert_nan_where(shows: Any, actual: Any, what: str) -> None:
    missing = shows & ~np.isnan(actual)
    assert not missing.any(), f"a NaN vanished, {what}, at {np.argwhere(missing)[0].tolist()}"


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _copies(values: dict[str, Any]) -> dict[str, Any]:
    return {name: np.copy(value) if _is_array(value) else value for name, value in values.items()}


def _assert_same_bits(actual: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    for name, value in expected.items():
        if _is_array(value) or isinstance(value, float):
            np.testing.assert_array_equal(actual[name], value, err_msg=f"{what}: {name}")
