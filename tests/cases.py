"""How to draw the inputs of every operator: one `Case` each, from which all its tests are made.

A case draws sizes and settings (Hypothesis, so that a failure shrinks to the smallest sizes) and a
seed; the arrays come from the seed and stay clear of kinks and ties, where there is no gradient
to compare. `kinks` draws arrays that sit on them, for tests that compare backends.

To cover a new operator, add its case to CASES and its name to `scratchnet.backends.OPERATORS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from scratchnet.backends import reference

Arguments = dict[str, Any]
Sizes = dict[str, Any]

CLEAR = 1e-3  # how far values stay from a kink or a tie


@dataclass(frozen=True)
class Hand:
    """One call of forward and backward, worked by hand."""

    arguments: Arguments
    outputs: Mapping[str, Any]
    cotangent: Any
    gradients: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """How to draw, run and judge one operator.

    sizes        draws sizes and settings
    arguments    makes forward's arguments, by name, from a generator and sizes
    gradients    what backward returns the gradients of, in order
    outputs      what forward returns, in order; the cotangent belongs to the first
    linear       groups of arguments in which, moved together, forward is linear
    homogeneous  groups of arguments in which forward is homogeneous of degree 1
    clearance    how far arguments are from the nearest kink or tie
    kinks        makes arguments that sit on kinks and ties
    forward_only makes arguments of a forward that has no backward
    nasties      sizes that break careless code
    large        sizes large enough that a parallel loop splits
    hands        calls worked by hand
    """

    sizes: st.SearchStrategy[Sizes]
    arguments: Callable[[np.random.Generator, Sizes], Arguments]
    gradients: tuple[str, ...]
    hands: tuple[Hand, ...]
    nasties: tuple[Sizes, ...]
    large: Sizes
    outputs: tuple[str, ...] = ("y",)
    linear: tuple[tuple[str, ...], ...] = ()
    homogeneous: tuple[tuple[str, ...], ...] = ()
    clearance: Callable[[Arguments], float] | None = None
    kinks: Callable[[np.random.Generator, Sizes], Arguments] | None = None
    forward_only: Callable[[np.random.Generator, Sizes], Arguments] | None = None

    def draw(self, sizes: Sizes) -> Arguments:
        """Arguments for these sizes, redrawn until they are clear of kinks and ties."""
        for attempt in range(1000):
            arguments = self.arguments(generator(sizes["seed"], f"case {attempt}"), sizes)
            if self.clearance is None or self.clearance(arguments) > CLEAR:
                return arguments
        raise AssertionError(f"no arguments clear of kinks for {sizes}")


def generator(seed: int, purpose: str) -> np.random.Generator:
    """A stream for each purpose: a cotangent that equals the input would hide mistakes."""
    return np.random.default_rng([seed, *purpose.encode()])


def image(*values: Any) -> np.ndarray:
    """One image of one channel from its rows: (1, H, W, 1)."""
    return np.array(values, np.float64)[None, :, :, None]


def floats(*values: Any) -> np.ndarray:
    return np.array(values, np.float64)


def _number(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


_SEED = _number(0, 2**32 - 1)


def _height_and_width(draw: st.DrawFn, smallest: int = 1, range_: int = 7) -> tuple[int, int]:
    """Never square: a mixed-up pair of axes must show."""
    H = draw(_number(smallest, smallest + range_))
    W = draw(_number(smallest, smallest + range_).filter(lambda size: size != H))
    return H, W


def _smallest(extent: int, padding: str | int) -> int:
    """The smallest image that a window of that extent fits."""
    if padding in ("same", "ceil"):
        return 1
    return max(1, extent - (0 if padding == "valid" else 2 * padding))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def distinct(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """A permutation of distinct values, 0.05 apart and around 0."""
    count = int(np.prod(shape))
    return (rng.permutation(count) - count / 2 + 0.3).reshape(shape) * 0.05


# Convolution, alone and fused


@st.composite
def _conv2d_sizes(draw: st.DrawFn) -> Sizes:
    K = draw(_number(1, 4))
    dilation = draw(_number(1, 3))
    padding = draw(st.sampled_from(("valid", "same", "ceil", 0, 1, 2)))
    H, W = _height_and_width(draw, _smallest(dilation * (K - 1) + 1, padding), 6)
    sizes = {"N": draw(_number(1, 3)), "H": H, "W": W, "K": K}
    sizes |= {name: draw(_number(1, 3)) for name in ("G", "per_group", "out_per_group")}
    sizes |= {"stride": draw(_number(1, 4)), "padding": padding, "dilation": dilation}
    return sizes | {"bias": draw(st.booleans()), "seed": draw(_SEED)}


def _conv2d(
    N: int, H: int, W: int, K: int, G: int = 1, per_group: int = 2, out_per_group: int = 3, **rest
) -> Sizes:
    settings = {"stride": 1, "padding": "valid", "dilation": 1, "bias": True, "seed": 7}
    sizes = {"N": N, "H": H, "W": W, "K": K, "G": G, "per_group": per_group}
    return sizes | {"out_per_group": out_per_group} | settings | rest


def _conv2d_arguments(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    N, H, W, K = (sizes[name] for name in ("N", "H", "W", "K"))
    G, per_group, out_per_group = (sizes[name] for name in ("G", "per_group", "out_per_group"))
    arguments = {
        "x": normal(rng, N, H, W, G * per_group),
        "weight": normal(rng, K, K, per_group, G * out_per_group),
        "bias": normal(rng, G * out_per_group) if sizes["bias"] else None,
    }
    return arguments | {name: sizes[name] for name in ("stride", "padding", "dilation")}


@st.composite
def _conv2d_relu_sizes(draw: st.DrawFn) -> Sizes:
    K = draw(_number(1, 4))
    padding = draw(st.sampled_from(("valid", "same", 0, 1, 2)))
    H, W = _height_and_width(draw, _smallest(K, padding), 6)
    sizes = {"N": draw(_number(1, 3)), "H": H, "W": W, "K": K, "padding": padding}
    sizes |= {"C": draw(_number(1, 5)), "O": draw(_number(1, 5))}
    return sizes | {"bias": draw(st.booleans()), "seed": draw(_SEED)}


def _conv2d_relu(N: int, H: int, W: int, K: int, C: int, O: int, **rest) -> Sizes:
    sizes = {"N": N, "H": H, "W": W, "K": K, "C": C, "O": O}
    return sizes | {"padding": "valid", "bias": True, "seed": 7} | rest


def _conv2d_relu_arguments(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    N, H, W, K, C, O = (sizes[name] for name in ("N", "H", "W", "K", "C", "O"))
    arguments = {
        "x": normal(rng, N, H, W, C),
        "weight": normal(rng, K, K, C, O),
        "bias": normal(rng, O) if sizes["bias"] else None,
    }
    return arguments | {name: sizes[name] for name in ("padding", "size") if name in sizes}


def _conv2d_relu_clearance(arguments: Arguments) -> float:
    z = reference.conv2d_forward(
        arguments["x"], arguments["weight"], arguments["bias"], 1, arguments["padding"]
    )
    return _nearest_to_zero(z)


def _nearest_to_zero(z: np.ndarray) -> float:
    """The smallest magnitude. Exactly 0 is a window of padding alone, which nothing moves."""
    return float(np.abs(z[z != 0]).min(initial=np.inf))


def _conv2d_relu_kinks(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    """A black image: every pre-activation is its bias, which is -1, 0 or 1."""
    arguments = _conv2d_relu_arguments(rng, sizes)
    O = arguments["weight"].shape[3]
    arguments["x"] = np.zeros_like(arguments["x"])
    arguments["bias"] = rng.integers(-1, 2, O).astype(np.float64)
    return arguments


@st.composite
def _conv2d_relu_maxpool2d_sizes(draw: st.DrawFn) -> Sizes:
    K, size = draw(_number(1, 4)), draw(_number(1, 3))
    padding = draw(st.sampled_from(("valid", "same", 0, 1, 2)))
    lost = 0 if padding == "same" else K - 1 - (0 if padding == "valid" else 2 * padding)
    H, W = _height_and_width(draw, max(1, size + lost), 6)
    sizes = _conv2d_relu(draw(_number(1, 3)), H, W, K, draw(_number(1, 4)), draw(_number(1, 5)))
    sizes |= {"padding": padding, "size": size}
    return sizes | {"bias": draw(st.booleans()), "seed": draw(_SEED)}


def _conv2d_relu_maxpool2d_clearance(arguments: Arguments) -> float:
    """The distance of the pre-activations from 0, and of the largest of a cell from the next."""
    z = reference.conv2d_forward(
        arguments["x"], arguments["weight"], arguments["bias"], 1, arguments["padding"]
    )
    size = arguments["size"]
    N, Ho, Wo, O = z.shape[0], z.shape[1] // size, z.shape[2] // size, z.shape[3]
    cells = z[:, : Ho * size, : Wo * size].reshape(N, Ho, size, Wo, size, O)
    cells = np.maximum(np.sort(cells.swapaxes(2, 3).reshape(N, Ho, Wo, -1, O), axis=3), 0)
    clearance = _nearest_to_zero(z)
    if size > 1:
        clearance = min(clearance, _nearest_to_zero(cells[..., -1, :] - cells[..., -2, :]))
    return clearance


# Involution


@st.composite
def _involution_sizes(draw: st.DrawFn) -> Sizes:
    H, W = _height_and_width(draw, 1, 7)
    sizes = {"N": draw(_number(1, 3)), "H": H, "W": W, "K": draw(st.sampled_from((1, 3, 5)))}
    sizes |= {"G": draw(_number(1, 3)), "per_group": draw(_number(1, 3))}
    sizes |= {"stride": draw(_number(1, 3)), "dilation": draw(_number(1, 3))}
    return sizes | {"seed": draw(_SEED)}


def _involution(N: int, H: int, W: int, K: int, G: int, per_group: int, **rest) -> Sizes:
    sizes = {"N": N, "H": H, "W": W, "K": K, "G": G, "per_group": per_group}
    return sizes | {"stride": 1, "dilation": 1, "seed": 7} | rest


def _involution_arguments(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    N, H, W, K, G, stride = (sizes[name] for name in ("N", "H", "W", "K", "G", "stride"))
    Ho, Wo = -(-H // stride), -(-W // stride)
    return {
        "x": normal(rng, N, H, W, G * sizes["per_group"]),
        "kernel": normal(rng, N, Ho, Wo, G, K, K),
        "stride": stride,
        "dilation": sizes["dilation"],
    }


@st.composite
def _generated_involution_sizes(draw: st.DrawFn) -> Sizes:
    sizes = draw(_involution_sizes())
    sizes |= {"hidden": draw(_number(1, 3)), "eps": draw(st.sampled_from((1e-3, 1e-5)))}
    return sizes | {"reduce_bias": draw(st.booleans())}


def _generated_involution(*sizes: int, hidden: int = 2, **rest) -> Sizes:
    return _involution(*sizes) | {"hidden": hidden, "eps": 1e-3, "reduce_bias": True} | rest


def _generated_involution_arguments(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    C, hidden, taps = sizes["G"] * sizes["per_group"], sizes["hidden"], sizes["K"] ** 2
    return {
        "x": normal(rng, sizes["N"], sizes["H"], sizes["W"], C),
        "reduce_weight": normal(rng, 1, 1, C, hidden),
        "reduce_bias": normal(rng, hidden) if sizes["reduce_bias"] else None,
        "gamma": normal(rng, hidden),
        "beta": normal(rng, hidden),
        "span_weight": normal(rng, 1, 1, hidden, sizes["G"] * taps),
        "span_bias": normal(rng, sizes["G"] * taps),
    } | {name: sizes[name] for name in ("K", "stride", "dilation", "eps")}


def _generated_involution_in_evaluation(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    arguments = _generated_involution_arguments(rng, sizes)
    hidden = sizes["hidden"]
    return arguments | {"mean": normal(rng, hidden), "inv_std": rng.uniform(0.5, 2, hidden)}


def _generated_involution_clearance(arguments: Arguments) -> float:
    """The distance of the branch's ReLU from 0; 0 too where a channel hardly varies."""
    stride = arguments["stride"]
    p = arguments["x"]
    if stride > 1:
        p = reference.avgpool2d_forward(p, stride, stride, "ceil")
    h = reference.dense_forward(p, arguments["reduce_weight"][0, 0], arguments["reduce_bias"])
    z = reference.batchnorm_forward(h, arguments["gamma"], arguments["beta"], arguments["eps"])[0]
    return min(float(np.abs(z).min()), _spread(h))


@st.composite
def _attention_kernel_sizes(draw: st.DrawFn) -> Sizes:
    sizes = draw(_involution_sizes()) | {"position": draw(st.booleans())}
    sizes.pop("stride")
    return sizes


def _attention_kernel(*sizes: int, position: bool = True, **rest) -> Sizes:
    return _involution(*sizes) | {"position": position} | rest


def _attention_kernel_arguments(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    N, H, W, K, G = (sizes[name] for name in ("N", "H", "W", "K", "G"))
    C = G * sizes["per_group"]
    return {
        "q": normal(rng, N, H, W, C),
        "k": normal(rng, N, H, W, C),
        "position": normal(rng, K, K, C) if sizes["position"] else None,
        "K": K,
        "groups": G,
        "dilation": sizes["dilation"],
    }


# Normalisation


@st.composite
def _channels_last_sizes(draw: st.DrawFn) -> Sizes:
    rank = draw(st.sampled_from((2, 3, 4)))
    shape = (draw(_number(1, 5)), *_height_and_width(draw, 1, 4), draw(_number(1, 5)))
    shape = (*shape[: rank - 1], shape[3])
    return {"shape": shape, "eps": draw(st.sampled_from((1e-3, 1e-5))), "seed": draw(_SEED)}


def _channels_last(*shape: int) -> Sizes:
    return {"shape": shape, "eps": 1e-3, "seed": 7}


def _batchnorm_arguments(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    return _channel_affine_arguments(rng, sizes) | {"eps": sizes["eps"]}


def _channel_affine_arguments(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    C = sizes["shape"][-1]
    x = normal(rng, *sizes["shape"]) + 2 * normal(rng, C)
    return {"x": x, "gamma": normal(rng, C), "beta": normal(rng, C)}


def _spread(x: np.ndarray) -> float:
    """Whether every channel varies enough to be divided by its deviation; one value need not."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) == 1:
        return np.inf
    return np.inf if rows.var(axis=0).min() > 0.25 else 0.0


# Pooling


@st.composite
def _pool2d_sizes(draw: st.DrawFn) -> Sizes:
    size = draw(_number(1, 4))
    padding = draw(st.sampled_from(("valid", "same", "ceil", *range(size))))
    H, W = _height_and_width(draw, _smallest(size, padding), 6)
    sizes = {"N": draw(_number(1, 3)), "H": H, "W": W, "C": draw(_number(1, 5)), "size": size}
    return sizes | {"stride": draw(_number(1, 5)), "padding": padding, "seed": draw(_SEED)}


def _pool2d(N: int, H: int, W: int, C: int, size: int, stride: int, padding="valid") -> Sizes:
    sizes = {"N": N, "H": H, "W": W, "C": C, "size": size}
    return sizes | {"stride": stride, "padding": padding, "seed": 7}


def _pool2d_arguments(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    x = distinct(rng, *(sizes[name] for name in ("N", "H", "W", "C")))
    return {"x": x} | {name: sizes[name] for name in ("size", "stride", "padding")}


def _pool2d_ties(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    arguments = _pool2d_arguments(rng, sizes)
    arguments["x"] = rng.integers(-2, 2, arguments["x"].shape).astype(np.float64)
    return arguments


_POOL_NASTIES = (
    _pool2d(1, 1, 1, 1, 1, 1),
    _pool2d(1, 1, 1, 2, 3, 2, "same"),
    _pool2d(1, 1, 1, 2, 3, 2, "ceil"),
    _pool2d(2, 1, 1, 2, 3, 1, 1),
    _pool2d(1, 3, 3, 2, 3, 3),
    _pool2d(2, 5, 7, 3, 1, 3),
    _pool2d(2, 7, 5, 3, 2, 5),
    _pool2d(2, 7, 5, 3, 2, 2),
    _pool2d(2, 7, 5, 3, 2, 2, "same"),
    _pool2d(2, 7, 5, 3, 2, 2, "ceil"),
    _pool2d(1, 6, 5, 2, 4, 3, 3),
    _pool2d(1, 17, 18, 1, 16, 1),
)


@st.composite
def _image_sizes(draw: st.DrawFn) -> Sizes:
    H, W = _height_and_width(draw, 1, 7)
    shape = (draw(_number(1, 3)), H, W, draw(_number(1, 5)))
    return {"shape": shape, "seed": draw(_SEED)}


# The rest


@st.composite
def _any_shape(draw: st.DrawFn) -> Sizes:
    shape = draw(st.lists(_number(1, 5), min_size=1, max_size=4))
    return {"shape": tuple(shape), "seed": draw(_SEED)}


def _shape(*shape: int, **rest) -> Sizes:
    return {"shape": shape, "seed": 7} | rest


@st.composite
def _dense_sizes(draw: st.DrawFn) -> Sizes:
    rows = draw(st.lists(_number(1, 4), min_size=1, max_size=3))
    sizes = {"rows": tuple(rows), "in": draw(_number(1, 6)), "out": draw(_number(1, 6))}
    return sizes | {"bias": draw(st.booleans()), "seed": draw(_SEED)}


def _dense(rows: tuple[int, ...], into: int, out: int, bias: bool = True) -> Sizes:
    return {"rows": rows, "in": into, "out": out, "bias": bias, "seed": 7}


def _dense_arguments(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    return {
        "x": normal(rng, *sizes["rows"], sizes["in"]),
        "weight": normal(rng, sizes["in"], sizes["out"]),
        "bias": normal(rng, sizes["out"]) if sizes["bias"] else None,
    }


@st.composite
def _dropout_sizes(draw: st.DrawFn) -> Sizes:
    mask_seed = draw(_number(0, 2**64 - 1))
    rate = draw(st.sampled_from((0.0, 0.1, 0.5, 0.9)))
    return draw(_any_shape()) | {"rate": rate, "mask_seed": mask_seed}


@st.composite
def _softmax_cross_entropy_sizes(draw: st.DrawFn) -> Sizes:
    sizes = {"N": draw(_number(1, 6)), "classes": draw(_number(1, 6)), "seed": draw(_SEED)}
    return sizes | {"label_smoothing": draw(st.sampled_from((0.0, 0.1, 0.5)))}


def _softmax_cross_entropy(N: int, classes: int, label_smoothing: float = 0.0) -> Sizes:
    return {"N": N, "classes": classes, "label_smoothing": label_smoothing, "seed": 7}


def _softmax_cross_entropy_arguments(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    return {
        "logits": 2 * normal(rng, sizes["N"], sizes["classes"]),
        "labels": rng.integers(sizes["classes"], size=sizes["N"]),
        "label_smoothing": sizes["label_smoothing"],
    }


def _x_of_shape(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    return {"x": normal(rng, *sizes["shape"])}


def _x_off_zero(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    x = normal(rng, *sizes["shape"])
    return {"x": x + np.copysign(CLEAR, x)}


CASES: dict[str, Case] = {
    "conv2d": Case(
        sizes=_conv2d_sizes(),
        arguments=_conv2d_arguments,
        gradients=("x", "weight", "bias"),
        linear=(("x",), ("weight",), ("bias",), ("weight", "bias")),
        nasties=(
            _conv2d(1, 1, 1, 1, per_group=1, out_per_group=1),
            _conv2d(1, 1, 1, 3, padding="same"),
            _conv2d(3, 5, 7, 1, per_group=18, out_per_group=49),
            _conv2d(2, 5, 7, 1, per_group=5, out_per_group=48, stride=2, bias=False),
            _conv2d(2, 1, 1, 3, padding=1, stride=2),
            _conv2d(2, 3, 3, 3),
            _conv2d(2, 4, 5, 4, padding="same"),
            _conv2d(1, 7, 6, 2, stride=4),
            _conv2d(2, 5, 6, 1, stride=3, padding="same"),
            _conv2d(2, 5, 4, 3, G=4, per_group=1, out_per_group=1, padding="same"),
            _conv2d(2, 5, 4, 3, G=3, per_group=1, out_per_group=2, padding=1),
            _conv2d(2, 7, 5, 3, stride=2, padding="same"),
            _conv2d(2, 7, 5, 3, stride=2, padding="ceil"),
            _conv2d(2, 7, 6, 3, stride=2, padding=1, dilation=2, G=2),
            _conv2d(1, 5, 9, 3, dilation=2, bias=False),
            _conv2d(1, 2, 3, 2, padding=3),
        ),
        large=_conv2d(5, 19, 14, 3, G=2, per_group=5, out_per_group=7, padding="same"),
        hands=(
            Hand(
                {
                    "x": image([1, 2, 3], [4, 5, 6], [7, 8, 9]),
                    "weight": floats([1, 2], [3, 4])[:, :, None, None],
                    "bias": floats(1),
                },
                {"y": image([38, 48], [68, 78])},
                image([1, 0], [0, 2]),
                {
                    "x": image([1, 2, 0], [3, 6, 4], [0, 6, 8]),
                    "weight": floats([11, 14], [20, 23])[:, :, None, None],
                    "bias": floats(3),
                },
            ),
            Hand(  # "same": an even window hangs over the bottom right
                {
                    "x": image([1, 2], [3, 4]),
                    "weight": floats([1, 2], [3, 4])[:, :, None, None],
                    "bias": None,
                    "padding": "same",
                },
                {"y": image([30, 14], [11, 4])},
                image([0, 1], [0, 0]),
                {
                    "x": image([0, 1], [0, 3]),
                    "weight": floats([2, 0], [4, 0])[:, :, None, None],
                },
            ),
            Hand(  # groups: outputs 0 and 1 see channels 0, 1 and channels 2, 3
                {
                    "x": floats(1, 2, 3, 4).reshape(1, 1, 1, 4),
                    "weight": floats([1, 100], [10, 1000])[None, None],
                    "bias": floats(0, 5),
                },
                {"y": floats(21, 4305).reshape(1, 1, 1, 2)},
                floats(1, 2).reshape(1, 1, 1, 2),
                {
                    "x": floats(1, 10, 200, 2000).reshape(1, 1, 1, 4),
                    "weight": floats([1, 6], [2, 8])[None, None],
                    "bias": floats(1, 2),
                },
            ),
            Hand(  # stride 2 skips pixel 1, dilation 2 puts the taps two pixels apart
                {
                    "x": image([1, 2, 3, 4, 5], [0] * 5, [6, 7, 8, 9, 10]),
                    "weight": floats([1, 2], [3, 4])[:, :, None, None],
                    "bias": None,
                    "stride": 2,
                    "dilation": 2,
                },
                {"y": image([1 + 6 + 18 + 32, 3 + 10 + 24 + 40])},
                image([1, 10]),
                {
                    "x": image([1, 0, 12, 0, 20], [0] * 5, [3, 0, 34, 0, 40]),
                    "weight": floats([31, 53], [86, 108])[:, :, None, None],
                },
            ),
        ),
    ),
    "conv2d_relu": Case(
        sizes=_conv2d_relu_sizes(),
        arguments=_conv2d_relu_arguments,
        gradients=("x", "weight", "bias"),
        homogeneous=(("weight", "bias"), ("x", "bias")),
        clearance=_conv2d_relu_clearance,
        kinks=_conv2d_relu_kinks,
        nasties=(
            _conv2d_relu(1, 1, 1, 1, 1, 1),
            _conv2d_relu(1, 1, 1, 3, 2, 3, padding="same"),
            _conv2d_relu(2, 3, 3, 3, 2, 3),
            _conv2d_relu(1, 4, 5, 4, 1, 2, padding="same", bias=False),
            _conv2d_relu(2, 5, 4, 3, 3, 2, padding=2),
            _conv2d_relu(1, 5, 7, 3, 1, 17, padding="same"),
            _conv2d_relu(1, 6, 7, 3, 16, 16),  # whole vectors of channels
        ),
        large=_conv2d_relu(5, 17, 14, 3, 6, 9, padding="same"),
        hands=(
            Hand(  # z = (3, 0) and (-6, 3): the ReLU is closed below 0 and at 0
                {
                    "x": image([1, -2]),
                    "weight": floats(3, -1).reshape(1, 1, 1, 2),
                    "bias": floats(0, 1),
                },
                {"y": floats([3, 0], [0, 3]).reshape(1, 1, 2, 2)},
                floats([5, 7], [11, 13]).reshape(1, 1, 2, 2),
                {
                    "x": image([15, -13]),
                    "weight": floats(5, -26).reshape(1, 1, 1, 2),
                    "bias": floats(5, 13),
                },
            ),
        ),
    ),
    "conv2d_relu_maxpool2d": Case(
        sizes=_conv2d_relu_maxpool2d_sizes(),
        arguments=_conv2d_relu_arguments,
        gradients=("x", "weight", "bias"),
        outputs=("y", "argmax"),
        homogeneous=(("weight", "bias"), ("x", "bias")),
        clearance=_conv2d_relu_maxpool2d_clearance,
        kinks=_conv2d_relu_kinks,
        nasties=(
            _conv2d_relu(1, 1, 1, 1, 1, 1, size=1),
            _conv2d_relu(1, 2, 2, 3, 2, 3, padding="same", size=2),
            _conv2d_relu(2, 4, 4, 3, 2, 3, size=2),
            _conv2d_relu(2, 5, 4, 3, 2, 3, padding="same", size=2),
            _conv2d_relu(1, 7, 9, 3, 1, 2, size=2, bias=False),
            _conv2d_relu(1, 8, 7, 2, 3, 2, padding=1, size=3),
            _conv2d_relu(1, 17, 18, 1, 1, 1, size=16),
            _conv2d_relu(1, 6, 7, 3, 16, 16, size=2),
        ),
        large=_conv2d_relu(5, 17, 14, 3, 6, 9, padding="same", size=2),
        hands=(
            Hand(  # z = 2x - 1; in the right cell no value is above 0
                {
                    "x": image([1, 2, -1, -2], [3, 1, -3, -1]),
                    "weight": floats(2).reshape(1, 1, 1, 1),
                    "bias": floats(-1),
                    "padding": "valid",
                    "size": 2,
                },
                {"y": image([5, 0]), "argmax": np.array([[[[2], [4]]]], np.uint8)},
                image([10, 100]),
                {
                    "x": image([0, 0, 0, 0], [20, 0, 0, 0]),
                    "weight": floats(30).reshape(1, 1, 1, 1),
                    "bias": floats(10),
                },
            ),
        ),
    ),
    "involution": Case(
        sizes=_involution_sizes(),
        arguments=_involution_arguments,
        gradients=("x", "kernel"),
        linear=(("x",), ("kernel",)),
        nasties=(
            _involution(1, 1, 1, 1, 1, 1),
            _involution(1, 1, 1, 5, 2, 1, stride=3),
            _involution(2, 3, 3, 3, 1, 3),
            _involution(2, 5, 4, 3, 4, 1),
            _involution(2, 7, 5, 3, 2, 2, stride=2),
            _involution(1, 6, 7, 5, 1, 2, stride=3, dilation=2),
            _involution(1, 2, 3, 3, 3, 2, stride=4),
            _involution(1, 4, 3, 7, 1, 1),
        ),
        large=_involution(5, 17, 14, 3, 2, 9, stride=2),
        hands=(
            Hand(  # an image one pixel high: only the middle row of each kernel meets it
                {
                    "x": image([1, 2, 3]),
                    "kernel": floats(
                        [[8, 8, 8], [9, 1, 2], [8, 8, 8]],
                        [[8, 8, 8], [3, 4, 5], [8, 8, 8]],
                        [[8, 8, 8], [6, 7, 9], [8, 8, 8]],
                    ).reshape(1, 1, 3, 1, 3, 3),
                },
                {"y": image([5, 26, 33])},
                image([1, 10, 100]),
                {
                    "x": image([31, 642, 750]),
                    "kernel": floats(
                        [[0, 0, 0], [0, 1, 2], [0, 0, 0]],
                        [[0, 0, 0], [10, 20, 30], [0, 0, 0]],
                        [[0, 0, 0], [200, 300, 0], [0, 0, 0]],
                    ).reshape(1, 1, 3, 1, 3, 3),
                },
            ),
            Hand(  # channels 0, 1 belong to group 0, channels 2, 3 to group 1
                {
                    "x": floats(1, 2, 3, 4).reshape(1, 1, 1, 4),
                    "kernel": floats(10, 100).reshape(1, 1, 1, 2, 1, 1),
                },
                {"y": floats(10, 20, 300, 400).reshape(1, 1, 1, 4)},
                floats(1, 1, 1, 2).reshape(1, 1, 1, 4),
                {
                    "x": floats(10, 10, 100, 200).reshape(1, 1, 1, 4),
                    "kernel": floats(3, 11).reshape(1, 1, 1, 2, 1, 1),
                },
            ),
        ),
    ),
    "generated_involution": Case(
        sizes=_generated_involution_sizes(),
        arguments=_generated_involution_arguments,
        gradients=(
            "x",
            "reduce_weight",
            "reduce_bias",
            "gamma",
            "beta",
            "span_weight",
            "span_bias",
        ),
        outputs=("y", "mean", "inv_std"),
        linear=(("span_weight", "span_bias"),),
        clearance=_generated_involution_clearance,
        forward_only=_generated_involution_in_evaluation,
        nasties=(
            _generated_involution(1, 1, 1, 1, 1, 1, hidden=1),
            _generated_involution(1, 1, 1, 3, 1, 2),
            _generated_involution(3, 3, 3, 3, 1, 3, reduce_bias=False),
            _generated_involution(2, 5, 4, 3, 4, 1),
            _generated_involution(2, 7, 5, 3, 2, 2, stride=2),
            _generated_involution(2, 6, 7, 5, 1, 2, stride=3, dilation=2),
            _generated_involution(4, 2, 3, 3, 3, 2, stride=4),
            _generated_involution(2, 11, 9, 3, 2, 9, stride=2, hidden=9),
        ),
        large=_generated_involution(5, 17, 14, 3, 2, 8, hidden=6),
        hands=(
            Hand(  # h = (1, 3), mean 2, variance 1 + eps 3, z = (-1, 1), kernels 7 and 12
                {
                    "x": image([1, 3]),
                    "reduce_weight": floats(1).reshape(1, 1, 1, 1),
                    "reduce_bias": floats(0),
                    "gamma": floats(2),
                    "beta": floats(0),
                    "span_weight": floats(5).reshape(1, 1, 1, 1),
                    "span_bias": floats(7),
                    "K": 1,
                    "stride": 1,
                    "dilation": 1,
                    "eps": 3.0,
                },
                {"y": image([7, 36]), "mean": floats(2), "inv_std": floats(0.5)},
                image([1, 10]),
                {  # the window gives x (7, 120), the kernels (-56.25, 56.25)
                    "x": image([-49.25, 176.25]),
                    "reduce_weight": floats(112.5).reshape(1, 1, 1, 1),
                    "reduce_bias": floats(0),
                    "gamma": floats(75),
                    "beta": floats(150),
                    "span_weight": floats(30).reshape(1, 1, 1, 1),
                    "span_bias": floats(31),
                },
            ),
        ),
    ),
    "attention_kernel": Case(
        sizes=_attention_kernel_sizes(),
        arguments=_attention_kernel_arguments,
        gradients=("q", "k", "position"),
        outputs=("kernel",),
        nasties=(
            _attention_kernel(1, 1, 1, 1, 1, 1),
            _attention_kernel(1, 1, 1, 5, 2, 1),
            _attention_kernel(2, 3, 3, 3, 1, 3),
            _attention_kernel(2, 5, 4, 3, 4, 1, position=False),
            _attention_kernel(1, 6, 7, 5, 1, 2, dilation=2),
            _attention_kernel(1, 4, 3, 7, 1, 1),
        ),
        large=_attention_kernel(5, 17, 14, 3, 2, 5),
        hands=(
            Hand(  # pixel 0 sees scores 0 and log 3, pixel 1, whose query is 0, two equal ones
                {
                    "q": image([1, 0]),
                    "k": image([0, np.log(3)]),
                    "position": np.zeros((3, 3, 1)),
                    "K": 3,
                    "groups": 1,
                },
                {
                    "kernel": floats(
                        [[0, 0, 0], [0, 0.25, 0.75], [0, 0, 0]],
                        [[0, 0, 0], [0.5, 0.5, 0], [0, 0, 0]],
                    ).reshape(1, 1, 2, 1, 3, 3)
                },
                floats(  # what comes for cells outside the image does not count
                    [[9, 9, 9], [9, 4, 0], [9, 9, 9]],
                    [[9, 9, 9], [0, 8, 9], [9, 9, 9]],
                ).reshape(1, 1, 2, 1, 3, 3),
                {  # the scores' gradients: 3/4, -3/4 at pixel 0, and -2, 2 at pixel 1
                    "q": image([-0.75 * np.log(3), 2 * np.log(3)]),
                    "k": image([0.75, -0.75]),
                    "position": floats([0, 0, 0], [0, 0.75, -0.75], [0, 0, 0])[:, :, None],
                },
            ),
        ),
    ),
    "batchnorm": Case(
        sizes=_channels_last_sizes(),
        arguments=_batchnorm_arguments,
        gradients=("x", "gamma", "beta"),
        outputs=("y", "mean", "inv_std"),
        linear=(("gamma", "beta"), ("gamma",), ("beta",)),
        clearance=lambda arguments: _spread(arguments["x"]),
        nasties=(
            _channels_last(1, 1),
            _channels_last(1, 1, 1, 3),
            _channels_last(2, 1),
            _channels_last(7, 3),
            _channels_last(1, 5, 4, 2),
            _channels_last(3, 2, 4),
        ),
        large=_channels_last(6, 17, 13, 19),
        hands=(
            Hand(  # mean 2, variance 1 + eps 3: xhat = -1/2, 1/2
                {
                    "x": floats([1], [3]),
                    "gamma": floats(2),
                    "beta": floats(5),
                    "eps": 3.0,
                },
                {"y": floats([4], [6]), "mean": floats(2), "inv_std": floats(0.5)},
                floats([1], [3]),
                {"x": floats([-0.75], [0.75]), "gamma": floats(1), "beta": floats(4)},
            ),
        ),
    ),
    "channel_affine": Case(
        sizes=_channels_last_sizes(),
        arguments=_channel_affine_arguments,
        gradients=("x", "gamma", "beta"),
        linear=(("x",), ("gamma",), ("beta",), ("gamma", "beta")),
        nasties=(_channels_last(1, 1), _channels_last(1, 1, 1, 3), _channels_last(3, 5, 4, 2)),
        large=_channels_last(6, 17, 13, 19),
        hands=(
            Hand(
                {
                    "x": floats([1, 2], [3, 4]),
                    "gamma": floats(10, 100),
                    "beta": floats(1, 2),
                },
                {"y": floats([11, 202], [31, 402])},
                floats([1, 2], [3, 4]),
                {
                    "x": floats([10, 200], [30, 400]),
                    "gamma": floats(10, 20),
                    "beta": floats(4, 6),
                },
            ),
        ),
    ),
    "maxpool2d": Case(
        sizes=_pool2d_sizes(),
        arguments=_pool2d_arguments,
        gradients=("x",),
        outputs=("y", "argmax"),
        homogeneous=(("x",),),
        kinks=_pool2d_ties,
        nasties=_POOL_NASTIES,
        large=_pool2d(5, 19, 14, 17, 2, 2),
        hands=(
            Hand(  # windows overlap; 5 and 8 are tied, and the first of each wins
                {"x": image([1, 5, 2], [5, 0, 3], [4, 8, 8]), "size": 2, "stride": 1},
                {
                    "y": image([5, 5], [8, 8]),
                    "argmax": np.array([[[[1], [0]], [[3], [2]]]], np.uint8),
                },
                image([1, 10], [100, 1000]),
                {"x": image([0, 11, 0], [0, 0, 0], [0, 1100, 0])},
            ),
            Hand(  # padding does not win against a negative pixel
                {"x": image([-1]), "size": 2, "stride": 2, "padding": 1},
                {"y": image([-1]), "argmax": np.array([[[[3]]]], np.uint8)},
                image([5]),
                {"x": image([5])},
            ),
        ),
    ),
    "avgpool2d": Case(
        sizes=_pool2d_sizes(),
        arguments=_pool2d_arguments,
        gradients=("x",),
        linear=(("x",),),
        nasties=_POOL_NASTIES,
        large=_pool2d(5, 19, 14, 17, 2, 2),
        hands=(
            Hand(  # the second window hangs over the edge: its mean is that of one pixel
                {"x": image([1, 2, 3]), "size": 2, "stride": 2, "padding": "ceil"},
                {"y": image([1.5, 3])},
                image([4, 5]),
                {"x": image([2, 2, 5])},
            ),
            Hand(  # overlapping windows add up
                {"x": image([1, 3, 9], [5, 7, 1]), "size": 2, "stride": 1},
                {"y": image([4, 5])},
                image([4, 8]),
                {"x": image([1, 3, 2], [1, 3, 2])},
            ),
        ),
    ),
    "globalavgpool2d": Case(
        sizes=_image_sizes(),
        arguments=_x_of_shape,
        gradients=("x",),
        linear=(("x",),),
        nasties=(_shape(1, 1, 1, 1), _shape(2, 1, 5, 3), _shape(3, 4, 1, 2)),
        large=_shape(6, 17, 13, 19),
        hands=(
            Hand(
                {"x": floats([[1, 10], [2, 20]], [[3, 30], [6, 60]]).reshape(1, 2, 2, 2)},
                {"y": floats([3, 30])},
                floats([8, 4]),
                {"x": floats([[2, 1], [2, 1]], [[2, 1], [2, 1]]).reshape(1, 2, 2, 2)},
            ),
        ),
    ),
    "dense": Case(
        sizes=_dense_sizes(),
        arguments=_dense_arguments,
        gradients=("x", "weight", "bias"),
        linear=(("x",), ("weight",), ("bias",), ("weight", "bias")),
        nasties=(
            _dense((1,), 1, 1),
            _dense((1,), 5, 1, bias=False),
            _dense((4,), 1, 3),
            _dense((2, 3, 2), 4, 3),
        ),
        large=_dense((37,), 53, 29),
        hands=(
            Hand(
                {
                    "x": floats([1, 2]),
                    "weight": floats([1, 2, 3], [4, 5, 6]),
                    "bias": floats(0.5, 0, -1),
                },
                {"y": floats([9.5, 12, 14])},
                floats([1, 0, 2]),
                {
                    "x": floats([7, 16]),
                    "weight": floats([1, 0, 2], [2, 0, 4]),
                    "bias": floats(1, 0, 2),
                },
            ),
        ),
    ),
    "relu": Case(
        sizes=_any_shape(),
        arguments=_x_off_zero,
        gradients=("x",),
        homogeneous=(("x",),),
        kinks=lambda rng, sizes: {"x": rng.choice([-1.0, -0.0, 0.0, 1.0], sizes["shape"])},
        nasties=(_shape(1), _shape(1, 1, 1, 1), _shape(3, 5)),
        large=_shape(6, 17, 13, 19),
        hands=(
            Hand(
                {"x": floats(-2, 0, 3)},
                {"y": floats(0, 0, 3)},
                floats(5, 7, 11),
                {"x": floats(0, 0, 11)},
            ),
        ),
    ),
    "flatten": Case(
        sizes=_any_shape(),
        arguments=_x_of_shape,
        gradients=("x",),
        linear=(("x",),),
        nasties=(_shape(1), _shape(3, 1, 1, 1), _shape(2, 3, 4)),
        large=_shape(6, 17, 13, 19),
        hands=(
            Hand(
                {"x": floats([[1, 2], [3, 4]], [[5, 6], [7, 8]])},
                {"y": floats([1, 2, 3, 4], [5, 6, 7, 8])},
                floats([10, 20, 30, 40], [50, 60, 70, 80]),
                {"x": floats([[10, 20], [30, 40]], [[50, 60], [70, 80]])},
            ),
        ),
    ),
    "add": Case(
        sizes=_any_shape(),
        arguments=lambda rng, sizes: {
            "a": normal(rng, *sizes["shape"]),
            "b": normal(rng, *sizes["shape"]),
        },
        gradients=("a", "b"),
        linear=(("a",), ("b",), ("a", "b")),
        nasties=(_shape(1), _shape(1, 1, 1, 1)),
        large=_shape(6, 17, 13, 19),
        hands=(
            Hand(
                {"a": floats(1, 2), "b": floats(10, 20)},
                {"y": floats(11, 22)},
                floats(3, 4),
                {"a": floats(3, 4), "b": floats(3, 4)},
            ),
        ),
    ),
    "dropout": Case(
        sizes=_dropout_sizes(),
        arguments=lambda rng, sizes: (
            _x_of_shape(rng, sizes) | {"rate": sizes["rate"], "seed": sizes["mask_seed"]}
        ),
        gradients=("x",),
        linear=(("x",),),
        nasties=(
            _shape(1, rate=0.0, mask_seed=0),
            _shape(7, 5, rate=0.5, mask_seed=2**64 - 1),
            _shape(7, 5, rate=0.5, mask_seed=2**63),
        ),
        large=_shape(6, 17, 13, 19, rate=0.3, mask_seed=12345),
        hands=(
            Hand(  # SplitMix64 of seed 0 begins e220a839.., 6e789e6a.., 06c45d18.., f88bb8a8..:
                # as fractions 0.88, 0.43, 0.03, 0.97
                {"x": floats(1, 2, 3, 4), "rate": 0.5, "seed": 0},
                {"y": floats(2, 0, 0, 8)},
                floats(1, 1, 1, 3),
                {"x": floats(2, 0, 0, 6)},
            ),
        ),
    ),
    "softmax_cross_entropy": Case(
        sizes=_softmax_cross_entropy_sizes(),
        arguments=_softmax_cross_entropy_arguments,
        gradients=("logits",),
        outputs=("loss", "probabilities"),
        nasties=(
            _softmax_cross_entropy(1, 1),
            _softmax_cross_entropy(1, 2, 0.1),
            _softmax_cross_entropy(5, 3, 0.9),
        ),
        large=_softmax_cross_entropy(131, 10, 0.1),
        hands=(
            Hand(
                {"logits": floats([0, np.log(3)]), "labels": np.array([1])},
                {"loss": np.log(4 / 3), "probabilities": floats([0.25, 0.75])},
                4.0,
                {"logits": floats([1, -1])},
            ),
            Hand(  # a class that is ruled out costs nothing: 0 log 0 counts as 0
                {"logits": floats([0, -np.inf]), "labels": np.array([0])},
                {"loss": 0.0, "probabilities": floats([1, 0])},
                1.0,
                {"logits": floats([0, 0])},
            ),
            Hand(  # two samples share the mean; smoothing 1/2 of 2 classes aims at 1/4, 3/4
                {
                    "logits": floats([0, np.log(3)], [0, 0]),
                    "labels": np.array([1, 0]),
                    "label_smoothing": 0.5,
                },
                {
                    "loss": (np.log(4) - 0.75 * np.log(3) + np.log(2)) / 2,
                    "probabilities": floats([0.25, 0.75], [0.5, 0.5]),
                },
                8.0,
                {"logits": floats([0, 0], [-1, 1])},
            ),
        ),
    ),
}


@dataclass(frozen=True)
class UpdateCase:
    """How to draw one optimizer step; `hands` are its arguments and the arrays after it."""

    sizes: st.SearchStrategy[Sizes]
    arguments: Callable[[np.random.Generator, Sizes], Arguments]
    hands: tuple[tuple[Arguments, Mapping[str, Any]], ...]


def _sgd_arguments(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    arrays = {name: normal(rng, *sizes["shape"]) for name in ("value", "grad", "velocity")}
    names = ("lr", "momentum", "nesterov", "weight_decay")
    return arrays | {name: sizes[name] for name in names}


def _adam_arguments(rng: np.random.Generator, sizes: Sizes) -> Arguments:
    arrays = {name: normal(rng, *sizes["shape"]) for name in ("value", "grad", "m", "v")}
    arrays["v"] = np.square(arrays["v"]) + 0.1  # a step is divided by the root of it
    names = ("lr", "beta1", "beta2", "eps", "weight_decay", "decoupled")
    return arrays | {name: sizes[name] for name in names} | {"step": 1}


@st.composite
def _update_sizes(draw: st.DrawFn, **settings: tuple) -> Sizes:
    drawn = {name: draw(st.sampled_from(values)) for name, values in settings.items()}
    return draw(_any_shape()) | drawn


def _sgd_hand(nesterov: bool, weight_decay: float, value: float, velocity: float):
    arguments = {"value": floats(1), "grad": floats(2), "velocity": floats(3), "lr": 0.1}
    arguments |= {"momentum": 0.5, "nesterov": nesterov, "weight_decay": weight_decay}
    return arguments, {"value": floats(value), "velocity": floats(velocity), "grad": floats(2)}


def _adam_hand(eps: float, weight_decay: float, decoupled: bool, **after: float):
    arguments = {"value": floats(1), "grad": floats(2), "m": floats(0), "v": floats(0)}
    arguments |= {"step": 1, "lr": 0.1, "beta1": 0.5, "beta2": 0.75, "eps": eps}
    arguments |= {"weight_decay": weight_decay, "decoupled": decoupled}
    return arguments, {name: floats(value) for name, value in after.items()}


UPDATE_CASES: dict[str, UpdateCase] = {
    "sgd_update": UpdateCase(
        sizes=_update_sizes(
            lr=(0.1, 0.0), momentum=(0.0, 0.9), nesterov=(False, True), weight_decay=(0.0, 0.01)
        ),
        arguments=_sgd_arguments,
        hands=(
            _sgd_hand(False, 0.0, value=0.65, velocity=3.5),
            _sgd_hand(True, 0.0, value=0.625, velocity=3.5),
            _sgd_hand(False, 1.0, value=0.55, velocity=4.5),
        ),
    ),
    "adam_update": UpdateCase(
        sizes=_update_sizes(
            lr=(1e-3, 0.1),
            beta1=(0.9, 0.0),
            beta2=(0.999, 0.5),
            eps=(1e-7, 1e-3),
            weight_decay=(0.0, 0.01),
            decoupled=(False, True),
        ),
        arguments=_adam_arguments,
        hands=(
            # m / (1 - 1/2) = 2 and v / (1 - 3/4) = 4: a first step is lr times a sign, if eps is 0
            _adam_hand(0.0, 0.0, False, value=0.9, m=1, v=1, grad=2),
            _adam_hand(2.0, 0.0, False, value=0.95, m=1, v=1, grad=2),
            _adam_hand(0.0, 0.5, True, value=0.85, m=1, v=1, grad=2),
            _adam_hand(2.5, 0.5, False, value=0.95, m=1.25, v=1.5625, grad=2),
            (  # the second step: m = 1/2 and v = 3/4 over 1 - 1/4 and 1 - 9/16
                _adam_hand(0.0, 0.0, False)[0]
                | {"m": floats(1), "v": floats(1), "grad": floats(0), "step": 2},
                {"value": floats(1 - 0.1 * (2 / 3) / np.sqrt(12 / 7)), "v": floats(0.75)},
            ),
        ),
    ),
}

# Sizes by which a fast backend shares its work out otherwise than by smaller ones: several images
# for each task and whole vectors of channels, some groups of many, several blocks of groups, many
# weights and few pixels, long sums of few rows, several images for each thread of a narrow
# involution. In float32, whose kernels differ, and beside the reference alone.
SHARED_OUT = [
    ("conv2d", _conv2d(40, 12, 13, 3, G=1, per_group=16, out_per_group=48, padding="same")),
    ("conv2d", _conv2d(40, 9, 8, 3, G=19, per_group=1, out_per_group=1, padding="same", stride=2)),
    ("conv2d", _conv2d(2, 7, 6, 3, G=9, per_group=2, out_per_group=4, padding="same", stride=2)),
    ("conv2d", _conv2d(2, 7, 6, 3, G=3, per_group=5, out_per_group=37, padding="same")),
    ("conv2d", _conv2d(1, 3, 3, 1, G=1, per_group=256, out_per_group=260)),
    ("conv2d", _conv2d(2, 5, 4, 1, G=1, per_group=257, out_per_group=256, stride=2, bias=False)),
    ("conv2d_relu", _conv2d_relu(1, 8, 9, 1, 256, 290)),
    ("dense", _dense((12,), 4100, 5)),
    ("dense", _dense((8,), 131, 70)),
    ("generated_involution", _generated_involution(18, 5, 4, 3, 1, 1, hidden=1)),
    ("generated_involution", _generated_involution(1, 24, 25, 5, 6, 2, hidden=2)),
]
