"""Analytic against numeric gradients, for layers and for plain functions.

A gradient is checked along with everything that makes such checks blind:

- The loss is sum(cotangent * y) with a random cotangent. With a cotangent of ones the gradient
  through a batch normalisation is zero, and any multiple of zero passes.
- All is float64, and y(+) - y(-) is taken before the sum, so that rounding stays near 1e-10.
- The step is h = cbrt(machine epsilon) times the size of the values, where the errors of rounding
  and of truncation balance. A mismatch is tried again with h / 10 and h / 100: beside a kink (ReLU,
  maximum) a shorter step stays on one side, while a wrong gradient is wrong at every step.
- Every array is checked on its own, element by element and along random directions; then all move
  together. The worst element is named.

Source: Griewank and Walther 2008, "Evaluating derivatives", section 3; Press et al. 2007,
"Numerical recipes", section 5.7, for the step.
"""

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchnet.checks import check_number, check_whole

_EPSILON = float(np.finfo(np.float64).eps)
_STEP = _EPSILON ** (1 / 3)
_STEPS = (_STEP, _STEP / 10, _STEP / 100)
_BLUNT = 1e-4  # of the gradient: where rounding alone is as large, nothing has been checked
_LOCATE = 2000  # elements to search for the wrong one, once a direction has shown a mismatch


class GradientMismatch(AssertionError):
    """A gradient that is wrong, not finite, not repeatable, not to be measured, or not without
    side effects.
    """


@dataclass(frozen=True)
class CheckedArray:
    """What was compared for one array: a derivative along a direction, and single elements.

    `error` is the largest relative error met, against the largest gradient of the array or the
    derivative of the direction; `elements` is how many single elements were compared.
    """

    name: str
    shape: tuple[int, ...]
    analytic: float
    numeric: float
    error: float
    elements: int


@dataclass(frozen=True)
class Report:
    """The outcome of a gradient check that passed; prints as a table."""

    rows: tuple[CheckedArray, ...]
    rtol: float

    @property
    def worst(self) -> CheckedArray:
        """The array with the largest relative error."""
        return max(self.rows, key=lambda row: row.error)

    def __str__(self) -> str:
        head = ("array", "shape", "analytic", "numeric", "rel. error", "elements")
        table = [head]
        for row in self.rows:
            shape = " x ".join(map(str, row.shape)) if row.shape else "-"
            derivatives = f"{row.analytic:+.8e}", f"{row.numeric:+.8e}"
            table.append((row.name, shape, *derivatives, f"{row.error:.1e}", str(row.elements)))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for cells in table:
            left = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
            right = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
            lines.append("  ".join(left + right))
        lines.insert(1, "-" * len(lines[0]))
        worst = self.worst
        lines.append(
            f"passed: the largest relative error is {worst.error:.1e} ({worst.name}), "
            f"{self.rtol:.0e} is allowed"
        )
        return "\n".join(lines)


def check_gradients(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    inputs: Mapping[str, np.ndarray],
    *,
    seed: int = 0,
    rtol: float = 1e-6,
    elements: int = 50,
    directions: int = 2,
) -> Report:
    """Check a hand-written backward function against central differences of its forward function.

    forward     forward(**inputs) -> y, an array or a number
    backward    backward(dy, **inputs) -> the gradients: a dict by name, or a tuple in the order
                of inputs, or the one array; None says that an input gets no gradient
    inputs      arrays by name; they are checked in float64
    seed        draws the cotangent, the directions and the elements
    rtol        largest relative error accepted
    elements    up to so many elements of each array are checked one by one
    directions  random directions for each array, and for all together; at least 1
    raises      GradientMismatch naming the array, the index and both numbers
    """
    arrays = {name: np.array(value, np.float64, order="C") for name, value in inputs.items()}

    def evaluate(values: Mapping[str, np.ndarray]) -> np.ndarray:
        return forward(**values)

    def differentiate(dy: np.ndarray) -> dict[str, np.ndarray]:
        return _by_name(backward(dy, **arrays), tuple(arrays))

    return _check(evaluate, differentiate, arrays, seed, rtol, elements, directions)


def gradcheck(
    layer: Any,
    x: np.ndarray,
    *,
    seed: int = 0,
    rtol: float = 1e-6,
    elements: int = 50,
    directions: int = 2,
) -> Report:
    """Check the gradients of a layer, for its input and for every trainable parameter.

    The layer runs in training mode and in float64; afterwards its dtype, values, gradients,
    running statistics and generators are what they were. A layer that draws random numbers repeats
    the same ones.

    layer       has forward(x, training=True), backward(dy) and parameters(), and may have
                astype(dtype) and generators()
    x           its input, any shape the layer takes
    seed, rtol, elements, directions   as for `check_gradients`
    raises      GradientMismatch naming the array, the index and both numbers
    """
    kept = _LayerState(layer)
    try:
        if hasattr(layer, "astype"):
            layer.astype(np.float64)
        before = _LayerState(layer)
        parameters = {name: p for name, p in _named(layer).items() if p.trainable}
        if "x" in parameters or len(parameters) < sum(p.trainable for p in layer.parameters()):
            raise ValueError("gradcheck: the names of the parameters must be unique and not x")
        arrays = {"x": np.array(x, np.float64, order="C")}
        arrays.update({name: np.array(p.value) for name, p in parameters.items()})

        def evaluate(values: Mapping[str, np.ndarray]) -> np.ndarray:
            before.restore()
            for name, parameter in parameters.items():
                _write(parameter, values[name])
            return layer.forward(values["x"], training=True)

        def differentiate(dy: np.ndarray) -> dict[str, np.ndarray]:
            gradients = {"x": layer.backward(dy)}
            gradients.update({name: p.grad for name, p in parameters.items()})
            for name, gradient in gradients.items():
                if gradient is None:
                    raise GradientMismatch(f"backward gave no gradient of {name}")
            return gradients

        report = _check(evaluate, differentiate, arrays, seed, rtol, elements, directions)
        if "need_dx" in inspect.signature(layer.backward).parameters:
            dy = np.random.default_rng(seed).standard_normal(evaluate(arrays).shape)
            gradients = {name: np.array(g) for name, g in differentiate(dy).items()}
            layer.backward(dy, need_dx=False)  # as the first layer of a network is trained
            _require_same(gradients, {name: p.grad for name, p in parameters.items()})
        return report
    finally:
        kept.restore()


class _LayerState:
    """All that running a layer changes: values, gradients and the state of its generators."""

    def __init__(self, layer: Any):
        self.layer = layer
        parameters = layer.parameters()
        self.arrays = [p.value for p in parameters]
        self.values = [np.array(p.value) for p in parameters]
        self.gradients = [copy.deepcopy(p.grad) for p in parameters]
        self.generators = [g.bit_generator.state for g in self._generators()]

    def restore(self) -> None:
        kept = zip(self.arrays, self.values, self.gradients, strict=True)
        for parameter, (array, value, gradient) in zip(self.layer.parameters(), kept, strict=True):
            parameter.value, parameter.grad = array, gradient
            _write(parameter, value)
        for generator, state in zip(self._generators(), self.generators, strict=True):
            generator.bit_generator.state = state

    def _generators(self) -> list[np.random.Generator]:
        return self.layer.generators() if hasattr(self.layer, "generators") else []


def _named(layer: Any) -> dict[str, Any]:
    if hasattr(layer, "named_parameters"):
        return layer.named_parameters()
    return {p.name: p for p in layer.parameters()}


def _write(parameter: Any, value: np.ndarray) -> None:
    """Overwrite the parameter's array, which may lie on a GPU."""
    if isinstance(parameter.value, np.ndarray):
        parameter.value[...] = value
    else:
        parameter.ops.copy_into(parameter.value, value)


def _check(
    evaluate: Callable[[Mapping[str, np.ndarray]], Any],
    differentiate: Callable[[np.ndarray], dict[str, np.ndarray]],
    arrays: dict[str, np.ndarray],
    seed: int,
    rtol: float,
    elements: int,
    directions: int,
) -> Report:
    check_number("gradcheck", "rtol", rtol, 0, above=True)
    check_whole("gradcheck", "directions", directions)
    check_whole("gradcheck", "elements", elements, 0)
    # A stream of its own: the caller's arrays may come from default_rng(seed), and a cotangent
    # equal to the input would not show, say, max(dy, 0) for the gradient of max(x, 0).
    rng = np.random.default_rng([seed, int.from_bytes(b"cotangent")])
    kept = {name: array.copy() for name, array in arrays.items()}
    y = np.array(evaluate(arrays))
    if y.dtype != np.float64:
        raise GradientMismatch(f"forward returned {y.dtype} for float64 inputs")
    _require_finite("the output", y)
    dy = rng.standard_normal(y.shape)
    gradients = _analytic(evaluate, differentiate, arrays, y, dy)
    for name, array in arrays.items():
        if not np.array_equal(array, kept[name]):
            raise GradientMismatch(f"{name} was changed in place")
    slope = _Slope(evaluate, arrays, dy, rtol)

    rows = []
    for name, gradient in gradients.items():
        indices = rng.permutation(gradient.size)[:elements]
        error = slope.elements(name, gradient, indices)
        alone = {name: gradient}
        for _ in range(directions):
            analytic, numeric, relative = slope.along(name, alone, rng)
            error = max(error, relative)
        row = CheckedArray(name, gradient.shape, analytic, numeric, error, len(indices))
        rows.append(row)
    slope.require_digits(gradients, rng)
    if len(gradients) > 1:
        outcomes = [slope.along("all together", gradients, rng) for _ in range(directions)]
        analytic, numeric, _ = outcomes[-1]
        error = max(outcome[2] for outcome in outcomes)
        rows.append(CheckedArray("all together", (), analytic, numeric, error, 0))
    return Report(tuple(rows), rtol)


def _analytic(
    evaluate: Callable[[Mapping[str, np.ndarray]], Any],
    differentiate: Callable[[np.ndarray], dict[str, np.ndarray]],
    arrays: dict[str, np.ndarray],
    y: np.ndarray,
    dy: np.ndarray,
) -> dict[str, np.ndarray]:
    """The gradients of backward: finite, fitting, the same twice, and with dy unchanged."""
    kept_dy = dy.copy()
    if not np.array_equal(np.asarray(evaluate(arrays)), y):
        raise GradientMismatch(
            "forward gives another output the second time: a layer that draws random numbers must "
            "name its generators in generators()"
        )
    first = _detached(differentiate(_as_given(dy, y)))
    second = _detached(differentiate(_as_given(dy, y)))
    if not np.array_equal(dy, kept_dy):
        raise GradientMismatch("backward changed dy in place")
    for name, gradient in first.items():
        if gradient.shape != arrays[name].shape:
            raise GradientMismatch(
                f"the gradient of {name} has shape {gradient.shape}, {name} has shape "
                f"{arrays[name].shape}"
            )
        if gradient.dtype != np.float64:
            raise GradientMismatch(f"the gradient of {name} is {gradient.dtype}, not float64")
        _require_finite(f"the gradient of {name}", gradient)
        if not np.array_equal(gradient, second[name]):
            index = _largest(np.abs(gradient - second[name]))
            raise GradientMismatch(
                f"backward called twice gives two gradients of {name}: at index {index} "
                f"{gradient[index]:.9g}, then {second[name][index]:.9g} (are they added up?)"
            )
    return first


def _as_given(dy: np.ndarray, y: np.ndarray) -> Any:
    """The cotangent as backward takes it: a number where forward gave a number."""
    return dy if y.ndim else float(dy)


def _detached(gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Copies, as the next call may write into the same memory."""
    return {name: np.array(gradient) for name, gradient in gradients.items()}


@dataclass
class _Slope:
    """Numeric derivatives of sum(dy * y), compared with the analytic ones."""

    evaluate: Callable[[Mapping[str, np.ndarray]], Any]
    arrays: dict[str, np.ndarray]
    dy: np.ndarray
    rtol: float

    def elements(self, name: str, gradient: np.ndarray, indices: np.ndarray) -> float:
        """Compare single elements; returns the largest error relative to the largest gradient."""
        size = _size(self.arrays[name])
        reference = float(np.abs(gradient).max(initial=0))
        worst = 0.0
        for flat in indices:
            index = tuple(int(i) for i in np.unravel_index(flat, gradient.shape))
            direction = np.zeros_like(gradient)
            direction[index] = size
            analytic = float(gradient[index])
            numeric, error, fits = self._compare(
                {name: direction}, analytic * size, reference * size
            )
            if not fits:
                raise GradientMismatch(
                    f"the gradient of {name} is wrong at index {index}: analytic {analytic:.9g}, "
                    f"numeric {numeric / size:.9g}"
                )
            worst = max(worst, error)
        return worst

    def require_digits(self, gradients: dict[str, np.ndarray], rng: np.random.Generator) -> None:
        """Beside the gradient of all arrays together, rounding is small.

        A gradient that is zero but for rounding is let through: there is nothing more to measure.
        """
        directions, _, reference = self._direction(gradients, rng)
        numeric, ends = self._central(directions, _STEP)
        rounding, scale = self._rounding(ends, _STEP), max(reference, abs(numeric))
        largest = float(np.abs(ends[0]).max(initial=0))
        zero = 10 * _EPSILON * largest * float(np.linalg.norm(self.dy))
        if scale > zero and rounding > _BLUNT * scale:
            raise GradientMismatch(
                f"the gradient cannot be measured: the output reaches {largest:.1e}, so that "
                f"rounding hides {rounding:.1e} of a derivative of {scale:.1e}; check with inputs "
                "that make it smaller"
            )

    def along(
        self, label: str, gradients: dict[str, np.ndarray], rng: np.random.Generator
    ) -> tuple[float, float, float]:
        """Compare along one random direction; returns both derivatives and the relative error."""
        directions, analytic, reference = self._direction(gradients, rng)
        numeric, error, fits = self._compare(directions, analytic, reference)
        if not fits:
            for name, gradient in gradients.items():
                self.elements(name, gradient, rng.permutation(gradient.size)[:_LOCATE])
            raise GradientMismatch(
                f"the gradient of {label} is wrong along a random direction: analytic "
                f"{analytic:.9g}, numeric {numeric:.9g}; no single element stands out"
            )
        return analytic, numeric, error

    def _direction(
        self, gradients: dict[str, np.ndarray], rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], float, float]:
        """A random direction of these arrays, the derivative along it, and how large that may be.

        A random sum of n shares is as large as their root sum of squares; if the shares happen to
        cancel, the error must not be measured against what is left.
        """
        directions = {
            name: rng.standard_normal(gradient.shape) * _size(self.arrays[name])
            for name, gradient in gradients.items()
        }
        shares = [gradients[name] * directions[name] for name in gradients]
        reference = float(np.sqrt(sum(np.square(share).sum() for share in shares)))
        return directions, float(sum(share.sum() for share in shares)), reference

    def _compare(
        self, directions: dict[str, np.ndarray], analytic: float, reference: float
    ) -> tuple[float, float, bool]:
        best = None
        for h in _STEPS:
            numeric, ends = self._central(directions, h)
            rounding = self._rounding(ends, h)
            difference = abs(numeric - analytic)
            scale = max(reference, abs(numeric), abs(analytic))
            # Written so that a NaN does not fit.
            if difference <= self.rtol * scale + rounding:
                resolved = max(scale, rounding / self.rtol, np.finfo(float).tiny)
                return numeric, difference / resolved, True
            if best is None or difference < best[1]:
                best = (numeric, difference)
        return best[0], np.inf, False

    def _central(self, directions: dict[str, np.ndarray], h: float) -> tuple[float, list]:
        """The slope, and y at both ends."""
        ends = []
        for sign in (h, -h):
            moved = {
                name: array + sign * directions[name] if name in directions else array
                for name, array in self.arrays.items()
            }
            ends.append(np.array(self.evaluate(moved)))
        return float(np.sum(self.dy * (ends[0] - ends[1])) / (2 * h)), ends

    def _rounding(self, ends: list[np.ndarray], h: float) -> float:
        """What rounding can add to the difference of both derivatives.

        To the numeric one, ten units in the last place of the largest y that moves, for each of
        them, over h; to the analytic sum, the same of all y.
        """
        moving = ends[0] != ends[1]
        units = [
            float(np.abs(y).max(initial=0) * np.linalg.norm(dy))
            for y, dy in ((ends[0][moving], self.dy[moving]), (ends[0], self.dy))
        ]
        return 10 * _EPSILON * (units[0] / h + units[1])


def _size(array: np.ndarray) -> float:
    """The root mean square of the values, by which steps are scaled; 1 where all are 0."""
    size = float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0
    return size if size > 0 else 1.0


def _largest(differences: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(np.argmax(differences), differences.shape))


def _require_finite(what: str, array: np.ndarray) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        index = _largest(bad)
        raise GradientMismatch(f"{what} is not finite: {array[index]} at index {index}")


def _require_same(gradients: dict[str, np.ndarray], without_dx: dict[str, Any]) -> None:
    for name, found in without_dx.items():
        expected = gradients[name]
        close = 1e-9 * np.abs(expected).max(initial=0) + 1e-12
        if found is None or not np.abs(found - expected).max(initial=0) <= close:
            raise GradientMismatch(f"the gradient of {name} is another where need_dx is False")


def _by_name(result: Any, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What backward returned, by the name of the input; inputs without a gradient are left out."""
    if not isinstance(result, Mapping):
        gradients = result if isinstance(result, tuple | list) else (result,)
        if len(gradients) != len(names):
            raise GradientMismatch(
                f"backward returned {len(gradients)} gradients for {len(names)} inputs: "
                f"{', '.join(names)}"
            )
        result = dict(zip(names, gradients, strict=True))
    unknown = [name for name in result if name not in names]
    if unknown:
        raise GradientMismatch(f"backward returned a gradient of {unknown[0]}, which is no input")
    missing = [name for name in names if name not in result]
    if missing:
        raise GradientMismatch(
            f"backward returned nothing for {missing[0]}: None would say that it has no gradient"
        )
    gradients = {name: gradient for name, gradient in result.items() if gradient is not None}
    if not gradients:
        raise GradientMismatch("backward returned no gradient: there is nothing to check")
    return gradients
