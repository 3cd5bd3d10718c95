"""What operators refuse: in words that name the operator and the argument, say what came and what
is accepted, before any kernel is entered. `test_bad_input.py` asks the backends of every machine,
`test_cuda.py` the one of a GPU.
"""

import numpy as np
import pytest
from cases import CASES, UPDATE_CASES, generator
from checks import cotangent_like, run_backward, run_forward

NAN = float("nan")


def _conv2d(**rest):
    sizes = {"N": 2, "H": 5, "W": 4, "K": 3, "G": 2, "per_group": 2, "out_per_group": 3}
    return sizes | {"stride": 1, "padding": "valid", "dilation": 1, "bias": True, "seed": 1} | rest


_FUSED = {"N": 2, "H": 5, "W": 6, "K": 3, "C": 2, "O": 4, "padding": "same", "bias": True}
_INVOLUTION = {"N": 2, "H": 5, "W": 4, "K": 3, "G": 2, "per_group": 2, "stride": 2}
_POOL = {"N": 2, "H": 5, "W": 4, "C": 3, "size": 2, "stride": 2, "padding": "valid"}
_UPDATE = {"shape": (3,), "lr": 0.1, "weight_decay": 0.0}

# Sizes of a call that is accepted; what follows spoils one argument of it.
ACCEPTED = {
    "conv2d": _conv2d(),
    "conv2d_relu": _FUSED,
    "conv2d_relu_maxpool2d": _FUSED | {"size": 2},
    "involution": _INVOLUTION | {"dilation": 1},
    "generated_involution": _INVOLUTION
    | {"dilation": 1, "hidden": 3, "eps": 1e-3, "reduce_bias": True},
    "attention_kernel": {
        **{"N": 2, "H": 5, "W": 4, "K": 3, "G": 2, "per_group": 2},
        **{"dilation": 1, "position": True},
    },
    "batchnorm": {"shape": (2, 5, 4, 3), "eps": 1e-3},
    "channel_affine": {"shape": (2, 5, 4, 3), "eps": 1e-3},
    "maxpool2d": _POOL,
    "avgpool2d": _POOL,
    "globalavgpool2d": {"shape": (2, 5, 4, 3)},
    "dense": {"rows": (2,), "in": 4, "out": 3, "bias": True},
    "relu": {"shape": (2, 5)},
    "flatten": {"shape": (2, 5, 3)},
    "add": {"shape": (2, 5)},
    "dropout": {"shape": (2, 5), "rate": 0.5, "mask_seed": 3},
    "softmax_cross_entropy": {"N": 4, "classes": 3, "label_smoothing": 0.1},
    "sgd_update": _UPDATE | {"momentum": 0.9, "nesterov": False},
    "adam_update": _UPDATE | {"beta1": 0.9, "beta2": 0.99, "eps": 1e-7, "decoupled": False},
}


def a(*shape, dtype=np.float64):
    return np.ones(shape, dtype)


INTS, HALVES, SINGLES = (
    lambda array: array.astype(np.int64),
    lambda array: array.astype(np.float16),
    lambda array: array.astype(np.float32),
)

# operator -> (argument, its bad value or what makes one of it, error, words of the message)
FORWARD = {
    "conv2d": [
        ("x", a(5, 4, 4), ValueError, "x (N, H, W, C) (5, 4, 4)"),
        ("x", INTS, TypeError, "x float32 float64 int64"),
        ("x", HALVES, TypeError, "x float32 float64 float16"),
        ("x", [[1.0]], TypeError, "x array list"),
        ("x", np.ma.masked_invalid, TypeError, "x plain array MaskedArray"),
        ("x", a(0, 5, 4, 4), ValueError, "x empty (0, 5, 4, 4)"),
        ("x", a(2, 5, 4, 3), ValueError, "3 channels 2"),
        ("x", a(2, 2, 4, 4), ValueError, "window spans 3 height 2"),
        ("x", a(2, 5, 2, 4), ValueError, "window spans 3 width 2"),
        ("weight", a(3, 3, 2), ValueError, "weight (K, K, C / G, O) (3, 3, 2)"),
        ("weight", a(3, 2, 2, 6), ValueError, "weight (K, K, C / G, O) (3, 2, 2, 6)"),
        ("weight", a(3, 3, 2, 5), ValueError, "5 output channels 2 groups"),
        ("weight", a(3, 3, 2, 0), ValueError, "weight empty (3, 3, 2, 0)"),
        ("weight", SINGLES, TypeError, "weight float64 float32"),
        ("bias", a(5), ValueError, "bias (6,) (5,)"),
        ("bias", a(1, 6), ValueError, "bias (6,) (1, 6)"),
        ("bias", SINGLES, TypeError, "bias float64 float32"),
        ("stride", 0, ValueError, "stride at least 1 0"),
        ("stride", 1.5, ValueError, "stride whole number 1.5"),
        ("stride", np.uint8(1), ValueError, "stride whole number (int) np.uint8(1)"),
        ("bias", [1.0], TypeError, "bias array list"),
        ("stride", (1, 1), ValueError, "stride whole number (1, 1)"),
        ("dilation", 0, ValueError, "dilation at least 1 0"),
        ("dilation", 2, ValueError, "window spans 5 4"),
        ("padding", "SAME", ValueError, 'padding "valid" "same" SAME'),
        ("padding", -1, ValueError, "padding at least 0 -1"),
        ("padding", None, ValueError, "padding None"),
        ("padding", True, ValueError, "padding True"),
        ("padding", np.int64(1), ValueError, "padding (int) np.int64(1)"),
    ],
    "conv2d_relu": [
        ("x", a(5, 6, 2), ValueError, "x (N, H, W, C) (5, 6, 2)"),
        ("x", INTS, TypeError, "x float32 float64 int64"),
        ("weight", a(3, 3, 3, 3), ValueError, "2 channels 3"),
        ("weight", a(3, 3, 1, 4), ValueError, "weight 2 channels no groups (3, 3, 1, 4)"),
        ("bias", a(3), ValueError, "bias (4,) (3,)"),
        ("padding", "full", ValueError, "padding full"),
    ],
    "conv2d_relu_maxpool2d": [
        ("x", a(5, 6, 2), ValueError, "x (N, H, W, C) (5, 6, 2)"),
        ("weight", a(3, 3, 3, 3), ValueError, "2 channels 3"),
        ("weight", a(3, 3, 1, 4), ValueError, "weight 2 channels no groups (3, 3, 1, 4)"),
        ("bias", a(3), ValueError, "bias (4,) (3,)"),
        ("padding", "full", ValueError, "padding full"),
        ("size", 0, ValueError, "size at least 1 0"),
        ("size", 7, ValueError, "window spans 7 5"),
    ],
    "involution": [
        ("x", a(5, 4, 4), ValueError, "x (N, H, W, C) (5, 4, 4)"),
        ("x", INTS, TypeError, "x float32 float64 int64"),
        ("x", a(2, 5, 4, 3), ValueError, "3 channels 2 groups"),
        ("kernel", a(2, 3, 2, 2, 4, 4), ValueError, "kernel size odd 4"),
        ("kernel", a(2, 3, 2, 2, 3, 5), ValueError, "kernel (2, 3, 2, 2, 5, 5) (2, 3, 2, 2, 3, 5)"),
        ("kernel", a(2, 3, 2, 2, 9), ValueError, "kernel (N, Ho, Wo, G, K, K) (2, 3, 2, 2, 9)"),
        ("kernel", a(2, 2, 2, 2, 3, 3), ValueError, "kernel (2, 3, 2, 2, 3, 3) (2, 2, 2, 2, 3, 3)"),
        ("kernel", a(1, 3, 2, 2, 3, 3), ValueError, "kernel (2, 3, 2, 2, 3, 3) (1, 3, 2, 2, 3, 3)"),
        ("kernel", a(2, 3, 2, 0, 3, 3), ValueError, "4 channels 0 groups"),
        ("kernel", SINGLES, TypeError, "kernel float64 float32"),
        ("stride", 0, ValueError, "stride at least 1 0"),
        ("dilation", -1, ValueError, "dilation at least 1 -1"),
    ],
    "generated_involution": [
        ("x", a(5, 4, 4), ValueError, "x (N, H, W, C) (5, 4, 4)"),
        ("x", a(2, 5, 4, 3), ValueError, "reduce_weight (1, 1, 3, 3) (1, 1, 4, 3)"),
        ("K", 2, ValueError, "kernel size odd 2"),
        ("K", 5, ValueError, "span_weight 5 18"),
        ("reduce_weight", a(4, 3), ValueError, "reduce_weight (1, 1, C, C / r) (4, 3)"),
        ("reduce_weight", a(1, 1, 4, 2), ValueError, "reduce_weight (1, 1, 4, 3) (1, 1, 4, 2)"),
        ("reduce_bias", a(2), ValueError, "reduce_bias (3,) (2,)"),
        ("gamma", a(4), ValueError, "gamma (3,) (4,)"),
        ("beta", SINGLES, TypeError, "beta float64 float32"),
        ("span_weight", a(1, 1, 3, 27), ValueError, "4 channels 3 groups"),
        ("span_bias", a(9), ValueError, "span_bias (18,) (9,)"),
        ("stride", 0, ValueError, "stride at least 1 0"),
        ("eps", 0, ValueError, "eps above 0"),
        ("eps", NAN, ValueError, "eps nan"),
    ],
    "attention_kernel": [
        ("q", a(5, 4, 4), ValueError, "q (N, H, W, C) (5, 4, 4)"),
        ("k", a(2, 5, 4, 3), ValueError, "k (2, 5, 4, 4) (2, 5, 4, 3)"),
        ("k", SINGLES, TypeError, "k float64 float32"),
        ("position", a(3, 3, 2), ValueError, "position (3, 3, 4) (3, 3, 2)"),
        ("K", 2, ValueError, "kernel size odd 2"),
        ("groups", 3, ValueError, "4 3 groups"),
        ("groups", np.int64(2), ValueError, "groups (int) np.int64(2)"),
        ("dilation", 0, ValueError, "dilation at least 1 0"),
    ],
    "batchnorm": [
        ("x", a(3), ValueError, "x (..., C) (3,)"),
        ("x", a(0, 3), ValueError, "x empty (0, 3)"),
        ("x", INTS, TypeError, "x float32 float64 int64"),
        ("gamma", a(4), ValueError, "gamma (3,) (4,)"),
        ("beta", a(1, 3), ValueError, "beta (3,) (1, 3)"),
        ("beta", SINGLES, TypeError, "beta float64 float32"),
        ("eps", 0.0, ValueError, "eps above 0 0.0"),
        ("eps", -1.0, ValueError, "eps above 0 -1.0"),
        ("eps", NAN, ValueError, "eps above 0 nan"),
    ],
    "channel_affine": [
        ("x", a(3), ValueError, "x (..., C) (3,)"),
        ("x", INTS, TypeError, "x float32 float64 int64"),
        ("gamma", a(4), ValueError, "gamma (3,) (4,)"),
        ("beta", SINGLES, TypeError, "beta float64 float32"),
    ],
    "maxpool2d": [
        ("x", a(5, 4, 3), ValueError, "x (N, H, W, C) (5, 4, 3)"),
        ("x", INTS, TypeError, "x float32 float64 int64"),
        ("x", a(2, 5, 4, 0), ValueError, "x empty (2, 5, 4, 0)"),
        ("size", 0, ValueError, "size at least 1 0"),
        ("size", 6, ValueError, "window spans 6 height 5"),
        ("size", 256, ValueError, "size at most 255 256"),
        ("stride", 0, ValueError, "stride at least 1 0"),
        ("padding", 2, ValueError, "padding smaller window of 2 2"),
        ("padding", "none", ValueError, "padding none"),
    ],
    "globalavgpool2d": [
        ("x", a(5, 4, 3), ValueError, "x (N, H, W, C) (5, 4, 3)"),
        ("x", a(2, 0, 4, 3), ValueError, "x empty (2, 0, 4, 3)"),
        ("x", INTS, TypeError, "x float32 float64 int64"),
    ],
    "dense": [
        ("x", a(2, 5), ValueError, "x (..., 4) (2, 5)"),
        ("x", a(4), ValueError, "x (..., 4) (4,)"),
        ("x", INTS, TypeError, "x float32 float64 int64"),
        ("weight", a(4), ValueError, "weight (in, out) (4,)"),
        ("weight", SINGLES, TypeError, "weight float64 float32"),
        ("bias", a(4), ValueError, "bias (3,) (4,)"),
    ],
    "relu": [("x", INTS, TypeError, "x float32 float64 int64"), ("x", [1.0], TypeError, "x list")],
    "flatten": [("x", INTS, TypeError, "x float32 int64"), ("x", [1.0], TypeError, "x list")],
    "add": [
        ("a", INTS, TypeError, "a float32 float64 int64"),
        ("b", a(5), ValueError, "b (2, 5) (5,)"),
        ("b", SINGLES, TypeError, "b float64 float32"),
    ],
    "dropout": [
        ("x", INTS, TypeError, "x float32 float64 int64"),
        ("rate", 1.0, ValueError, "rate [0, 1) 1.0"),
        ("rate", -0.1, ValueError, "rate [0, 1) -0.1"),
        ("rate", NAN, ValueError, "rate [0, 1) nan"),
    ],
    "softmax_cross_entropy": [
        ("logits", a(3), ValueError, "logits (N, classes) (3,)"),
        ("logits", a(0, 3), ValueError, "logits empty (0, 3)"),
        ("logits", INTS, TypeError, "logits float32 float64 int64"),
        ("labels", np.array([0, 1, 2, 3]), ValueError, "labels 0..2 3"),
        ("labels", np.array([0, -1, 2, 1]), ValueError, "labels 0..2 -1"),
        ("labels", np.array([0, 1]), ValueError, "labels (4,) (2,)"),
        ("labels", a(4), TypeError, "labels whole numbers float64"),
        ("labels", [0, 1, 2, 1], TypeError, "labels array list"),
        ("label_smoothing", 1.0, ValueError, "label_smoothing [0, 1) 1.0"),
        ("label_smoothing", -0.1, ValueError, "label_smoothing [0, 1) -0.1"),
        ("label_smoothing", NAN, ValueError, "label_smoothing [0, 1) nan"),
    ],
}
FORWARD["avgpool2d"] = FORWARD["maxpool2d"]

# The same for backward: its upstream gradient, and what forward handed on.
BACKWARD = {
    "conv2d": [
        ("dy", a(2, 3, 2, 5), ValueError, "dy (2, 3, 2, 6) (2, 3, 2, 5)"),
        ("dy", SINGLES, TypeError, "dy float64 float32"),
        ("weight", a(3, 3, 2, 5), ValueError, "5 output channels 2 groups"),
    ],
    "conv2d_relu": [
        ("dy", a(2, 5, 6, 2), ValueError, "dy (2, 5, 6, 4) (2, 5, 6, 2)"),
        ("weight", a(3, 3, 1, 4), ValueError, "weight 2 channels no groups (3, 3, 1, 4)"),
    ],
    "conv2d_relu_maxpool2d": [
        ("dy", a(2, 2, 3, 2), ValueError, "dy (2, 2, 3, 4) (2, 2, 3, 2)"),
        ("dy", a(2, 2, 3), ValueError, "dy (2, 2, 3, 4) (2, 2, 3)"),
        ("argmax", a(2, 2, 3, 2, dtype=np.uint8), ValueError, "argmax (2, 2, 3, 4) (2, 2, 3, 2)"),
        ("argmax", a(2, 2, 3, 4), TypeError, "argmax forward float64"),
        ("weight", a(3, 3, 1, 4), ValueError, "weight 2 channels no groups (3, 3, 1, 4)"),
    ],
    "involution": [
        ("dy", a(2, 5, 4, 4), ValueError, "dy (2, 3, 2, 4) (2, 5, 4, 4)"),
        ("dy", SINGLES, TypeError, "dy float64 float32"),
    ],
    "generated_involution": [
        ("dy", a(2, 5, 4, 4), ValueError, "dy (2, 3, 2, 4) (2, 5, 4, 4)"),
        ("mean", a(4), ValueError, "mean (3,) (4,)"),
        ("inv_std", a(1), ValueError, "inv_std (3,) (1,)"),
    ],
    "attention_kernel": [
        ("dkernel", a(2, 5, 4, 2, 3, 1), ValueError, "dkernel (2, 5, 4, 2, 3, 3)"),
        ("kernel", a(2, 5, 4, 1, 3, 3), ValueError, "dkernel (2, 5, 4, 1, 3, 3)"),
        ("kernel", a(2, 5, 4, 2, 9), ValueError, "kernel (N, H, W, G, K, K) (2, 5, 4, 2, 9)"),
        ("kernel", [1.0], TypeError, "kernel array list"),
    ],
    "batchnorm": [
        ("dy", a(2, 5, 4, 2), ValueError, "dy (2, 5, 4, 3) (2, 5, 4, 2)"),
        ("mean", a(4), ValueError, "mean (3,) (4,)"),
        ("inv_std", SINGLES, TypeError, "inv_std float64 float32"),
    ],
    "channel_affine": [("dy", a(2, 5, 4, 2), ValueError, "dy (2, 5, 4, 3) (2, 5, 4, 2)")],
    "maxpool2d": [
        ("dy", a(2, 2, 2, 2), ValueError, "dy (2, 2, 2, 3) (2, 2, 2, 2)"),
        ("dy", INTS, TypeError, "dy float32 float64 int64"),
        ("dy", [1.0], TypeError, "dy array list"),
        ("argmax", a(2, 2, 2, 2, dtype=np.uint8), ValueError, "argmax (2, 2, 2, 3) (2, 2, 2, 2)"),
        ("argmax", np.zeros((2, 2, 2, 3), np.int64), TypeError, "argmax forward int64"),
        ("x_shape", (5, 4, 3), ValueError, "x_shape (N, H, W, C) (5, 4, 3)"),
    ],
    "avgpool2d": [
        ("dy", a(2, 2, 2, 2), ValueError, "dy (2, 2, 2, 3) (2, 2, 2, 2)"),
        ("dy", [1.0], TypeError, "dy array list"),
        ("x_shape", (5, 4, 3), ValueError, "x_shape (N, H, W, C) (5, 4, 3)"),
    ],
    "globalavgpool2d": [
        ("dy", a(2, 2), ValueError, "dy (2, 3) (2, 2)"),
        ("dy", [1.0], TypeError, "dy array list"),
        ("x_shape", (2, 4, 3), ValueError, "x_shape (N, H, W, C) (2, 4, 3)"),
    ],
    "dense": [("dy", a(2, 4), ValueError, "dy (2, 3) (2, 4)")],
    "relu": [
        ("dy", a(2, 4), ValueError, "dy (2, 5) (2, 4)"),
        ("y", INTS, TypeError, "y float32 float64 int64"),
    ],
    "flatten": [
        ("dy", a(2, 14), ValueError, "dy (2, 15) (2, 14)"),
        ("dy", [1.0], TypeError, "dy array list"),
    ],
    "add": [("dy", INTS, TypeError, "dy float32 float64 int64")],
    "dropout": [("rate", 1.0, ValueError, "rate [0, 1) 1.0")],
    "softmax_cross_entropy": [
        ("labels", np.array([0, 1, 2, 3]), ValueError, "labels 0..2 3"),
        ("probabilities", a(3), ValueError, "(N, classes) (3,)"),
    ],
}

UPDATE = {
    "sgd_update": [
        ("grad", a(4), ValueError, "grad (3,) (4,)"),
        ("grad", SINGLES, TypeError, "grad float64 float32"),
        ("velocity", a(1), ValueError, "velocity (3,) (1,)"),
        ("velocity", SINGLES, TypeError, "velocity float64 float32"),
    ],
    "adam_update": [
        ("grad", a(4), ValueError, "grad (3,) (4,)"),
        ("m", a(1), ValueError, "m (3,) (1,)"),
        ("v", SINGLES, TypeError, "v float64 float32"),
        ("step", 0, ValueError, "step at least 1 0"),
    ],
}

# The parts by whose name a composed operator may refuse.
PARTS = {
    "conv2d_relu": ("conv2d", "relu"),
    "conv2d_relu_maxpool2d": ("conv2d", "maxpool2d"),
    "generated_involution": ("batchnorm", "involution"),
}


def each(table):
    """A decorator: the test gets every row of a table, and the operator's name before it."""
    rows = [
        pytest.param(operator, *row, id=f"{operator}-{row[0]}-{i}")
        for operator, rows in table.items()
        for i, row in enumerate(rows)
    ]
    return pytest.mark.parametrize("operator, argument, value, error, words", rows)


def check_forward_refuses(ops, operator, argument, value, error, words):
    arguments = _accepted(operator)
    arguments[argument] = _bad(value, arguments[argument])
    forward = getattr(ops, f"{operator}_forward")
    _assert_refused(lambda: forward(**arguments), operator, error, words)


def check_backward_refuses(ops, operator, argument, value, error, words):
    arguments = _accepted(operator)
    outputs = run_forward(ops, operator, arguments)
    known = {f"{name}_shape": array.shape for name, array in arguments.items() if name == "x"}
    known[f"d{CASES[operator].outputs[0]}"] = cotangent_like(next(iter(outputs.values())), 1)
    good = (arguments | outputs | known)[argument]
    known |= arguments | outputs | {argument: _bad(value, good)}
    _assert_refused(
        lambda: run_backward(ops, operator, known, {}, known[f"d{CASES[operator].outputs[0]}"]),
        operator,
        error,
        words,
    )


def check_update_refuses_and_changes_nothing(ops, operator, argument, value, error, words):
    arguments = _accepted(operator)
    arguments[argument] = _bad(value, arguments[argument])
    before = {name: np.copy(array) for name, array in arguments.items()}
    update = getattr(ops, operator)
    _assert_refused(lambda: update(**arguments), operator, error, words)
    for name, array in before.items():
        np.testing.assert_array_equal(arguments[name], array, err_msg=name)


def _bad(value, good):
    return value(good) if callable(value) else value


def _assert_refused(call, operator, error, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    message = str(caught.value)
    assert caught.type is error, f"{caught.type.__name__}: {message}"
    assert message.startswith(tuple(f"{name}: " for name in (operator, *PARTS.get(operator, ()))))
    rest = message
    for word in _split(words):
        assert word in rest, f"{word!r} is missing in {message!r}"
        rest = rest[rest.index(word) + len(word) :]


def _split(words):
    """The words, a shape in brackets being one word."""
    found, depth = [""], 0
    for letter in words:
        depth += (letter in "([") - (letter in ")]")
        if letter == " " and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return found


def _accepted(operator):
    case = CASES[operator] if operator in CASES else UPDATE_CASES[operator]
    sizes = ACCEPTED[operator] | {"seed": 1}
    return case.arguments(generator(1, "bad input"), sizes)
