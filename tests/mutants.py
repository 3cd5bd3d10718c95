"""Wrong operators, made from the right ones, and which check rejects each.

A mutant replaces a snippet in the source of a reference module and runs the changed copy. The
snippet must stand there exactly once: where the source has moved on, the mutant fails loudly
instead of testing nothing. `python tests/mutants.py` prints the whole table.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import checks
import numpy as np
import oracle
from cases import CASES, UPDATE_CASES

from scratchnet.backends import OPERATORS


@dataclass(frozen=True)
class Mutant:
    """A mistake: what it is, and the snippets (old, new) that make it."""

    operator: str
    mistake: str
    replacements: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"{self.operator}: {self.mistake}"


def load(module_name: str, replacements: tuple[tuple[str, str], ...]) -> ModuleType:
    """The module with snippets replaced, run as a copy that nothing else imports."""
    original = importlib.import_module(f"scratchnet.backends.reference.{module_name}")
    source = inspect.getsource(original)
    for old, new in replacements:
        if source.count(old) != 1:
            raise LookupError(
                f"{module_name}.py has {source.count(old)} times, not once: {old!r}; "
                "bring the mutant up to date"
            )
        source = source.replace(old, new)
    copy = ModuleType(f"mutant_of_{module_name}")
    exec(compile(source, copy.__name__, "exec"), copy.__dict__)
    return copy


def rejections(ops: ModuleType, operator: str) -> list[str]:
    """The checks of the suite that reject this operator. A mutant that crashes proves nothing."""
    case = CASES[operator]

    def on_nasties(check: Callable) -> Callable[[], None]:
        def run() -> None:
            for sizes in case.nasties:
                check(ops, operator, case.draw(sizes), sizes["seed"])

        return run

    def against_loops(ops, operator, arguments, seed) -> None:
        checks.check_parity(ops, oracle, operator, arguments, np.float64, seed)

    suite = {
        "by hand": lambda: checks.check_by_hand(ops, operator),
        "gradient": on_nasties(checks.check_gradient),
        "adjoint": on_nasties(checks.check_adjoint),
        "euler": on_nasties(checks.check_homogeneous),
    }
    if operator in oracle.OPERATORS:
        suite["plain loops"] = on_nasties(against_loops)
    return [name for name, check in suite.items() if _rejects(check)]


def update_rejections(ops: ModuleType, update: str) -> list[str]:
    """Whether the values worked by hand reject this optimizer step."""

    def by_hand() -> None:
        for hand in UPDATE_CASES[update].hands:
            checks.check_update_by_hand(ops, update, hand, np.float64)

    return ["by hand"] if _rejects(by_hand) else []


def _rejects(check: Callable[[], None]) -> bool:
    try:
        check()
    except AssertionError:
        return True
    return False


def _mutants(operator: str, *mistakes: tuple) -> tuple[Mutant, ...]:
    """Mutants from (mistake, old, new) or (mistake, old, new, old, new, ...)."""
    return tuple(
        Mutant(operator, mistake, tuple(zip(snippets[::2], snippets[1::2], strict=True)))
        for mistake, *snippets in mistakes
    )


_CONV_DX_TAP = (
    "add_tap(dpadded, dwindow.reshape(*dy.shape[:3], C), u, v, geometry, stride, dilation)"
)
_CONV_DWEIGHT_TAP = (
    "window = tap(padded, u, v, geometry, stride, dilation)\n"
    "            grouped = window.reshape(-1, G, per_group)"
)
_INV_DX_TAP = "add_tap(dpadded, dwindow.reshape(dy.shape), u, v, geometry, stride, dilation)"
_BN_DX = "dx = gamma * inv_std * (dy - dbeta / M - xhat * dgamma / M)"
_SHIFTED = "geometry._replace(top=geometry.bottom, left=geometry.right)"
_STATISTICS_FIXED = (
    "dh, dgamma, dbeta = (dz * gamma * inv_std, "
    "(dz * (h - mean) * inv_std).sum(axis=(0, 1, 2)), dz.sum(axis=(0, 1, 2)))"
)

MUTANTS: tuple[Mutant, ...] = (
    *_mutants(
        "conv2d",
        ("dweight has the wrong sign", "= (grouped @ grouped_dy)", "= -(grouped @ grouped_dy)"),
        ("dx swaps rows and columns", _CONV_DX_TAP, _CONV_DX_TAP.replace("u, v", "v, u")),
        ("dx forgets the stride", _CONV_DX_TAP, _CONV_DX_TAP.replace("stride, ", "1, ")),
        (
            "dx takes stride for dilation",
            _CONV_DX_TAP,
            _CONV_DX_TAP.replace("stride, dilation", "dilation, stride"),
        ),
        (
            "dweight forgets the dilation",
            _CONV_DWEIGHT_TAP,
            _CONV_DWEIGHT_TAP.replace("stride, dilation", "stride, 1"),
        ),
        (
            "dx flips the kernel",
            "matrix = weight[u, v].reshape(per_group, G, O // G).transpose",
            "matrix = weight[K - 1 - u, K - 1 - v].reshape(per_group, G, O // G).transpose",
        ),
        (
            "dx deals out the groups in turn",
            ".reshape(per_group, G, O // G).transpose(1, 2, 0)",
            ".reshape(per_group, O // G, G).transpose(2, 1, 0)",
        ),
        ("dbias sees one sample", "dy.sum(axis=(0, 1, 2))", "dy[:1].sum(axis=(0, 1, 2))"),
        (
            "dx cuts the padding of the wrong side",
            "cut_padding(dpadded, x.shape, geometry)",
            f"cut_padding(dpadded, x.shape, {_SHIFTED})",
        ),
        (
            "dx is written, not added",
            "add_tap(dpadded, dwindow.reshape(*dy.shape[:3], C), u, v, geometry, stride, dilation)",
            "tap(dpadded, u, v, geometry, stride, dilation)[...] = "
            "dwindow.reshape(*dy.shape[:3], C)",
        ),
        (
            "a kernel that is flipped, forward and backward",
            "matrix = weight[u, v].reshape(per_group, G, O // G).swapaxes",
            "matrix = weight[K - 1 - u, K - 1 - v].reshape(per_group, G, O // G).swapaxes",
            "matrix = weight[u, v].reshape(per_group, G, O // G).transpose",
            "matrix = weight[K - 1 - u, K - 1 - v].reshape(per_group, G, O // G).transpose",
            "dweight[u, v] =",
            "dweight[K - 1 - u, K - 1 - v] =",
        ),
    ),
    *_mutants(
        "conv2d_relu",
        ("no ReLU", "relu_backward(dy, y)", "dy"),
        ("the ReLU of the gradient", "relu_backward(dy, y)", "relu_forward(dy)"),
        ("dbias misses the ReLU", "dweight, dbias\n", "dweight, dy.sum(axis=(0, 1, 2))\n"),
        ("dx has the wrong sign", "(dx if need_dx", "(-dx if need_dx"),
    ),
    *_mutants(
        "conv2d_relu_maxpool2d",
        (
            "a closed ReLU lets the gradient through",
            "open_dy = np.where(argmax < size * size, dy, 0)",
            "open_dy = dy",
        ),
        (
            "the winner's row and column are swapped",
            "argmax < size * size, argmax, 0)",
            "argmax < size * size, argmax % size * size + argmax // size, 0)",
        ),
        (
            "the first of each cell wins",
            "open_argmax = np.where(argmax < size * size, argmax, 0)",
            "open_argmax = np.where(argmax < size * size, 0, 0)",
        ),
        ("the wrong sign", "conv2d_backward(dz,", "conv2d_backward(-dz,"),
        (
            "a gradient shifted by a cell",
            "conv2d_backward(dz,",
            "conv2d_backward(np.roll(dz, 1, axis=2),",
        ),
    ),
    *_mutants(
        "involution",
        (
            "dx has the wrong sign",
            "dwindow = grouped_dy * kernel",
            "dwindow = -grouped_dy * kernel",
        ),
        (
            "dx transposes the kernel",
            "dwindow = grouped_dy * kernel[:, :, :, :, None, u, v]",
            "dwindow = grouped_dy * kernel[:, :, :, :, None, v, u]",
        ),
        (
            "dx flips the kernel",
            "dwindow = grouped_dy * kernel[:, :, :, :, None, u, v]",
            "dwindow = grouped_dy * kernel[:, :, :, :, None, K - 1 - u, K - 1 - v]",
        ),
        ("dx forgets the stride", _INV_DX_TAP, _INV_DX_TAP.replace("stride, ", "1, ")),
        (
            "dx takes stride for dilation",
            _INV_DX_TAP,
            _INV_DX_TAP.replace("stride, dilation", "dilation, stride"),
        ),
        ("dkernel averages the group", "window).sum(axis=-1)", "window).mean(axis=-1)"),
        ("dkernel sees one channel", "window).sum(axis=-1)", "window)[..., 0]"),
        ("dkernel swaps the taps", "dkernel[..., u, v] =", "dkernel[..., v, u] ="),
        (
            "dx deals out the groups in turn",
            "dwindow = grouped_dy * kernel[:, :, :, :, None, u, v]",
            "dwindow = (dy.reshape(N, Ho, Wo, C // G, G) * kernel[:, :, :, None, :, u, v])",
        ),
        (
            "dx is shifted by a row",
            "cut_padding(dpadded, x.shape, geometry)",
            "cut_padding(np.roll(dpadded, 1, axis=1), x.shape, geometry)",
        ),
        (
            "groups dealt out in turn, forward and backward",
            "y = np.zeros((N, Ho, Wo, G, C // G), x.dtype)",
            "y = np.zeros((N, Ho, Wo, C // G, G), x.dtype)",
            "y += window * kernel[:, :, :, :, None, u, v]",
            "y += window * kernel[:, :, :, None, :, u, v]",
            "grouped_dy = dy.reshape(N, Ho, Wo, G, C // G)",
            "grouped_dy = dy.reshape(N, Ho, Wo, C // G, G)",
            "window).sum(axis=-1)",
            "window).sum(axis=-2)",
            "dwindow = grouped_dy * kernel[:, :, :, :, None, u, v]",
            "dwindow = grouped_dy * kernel[:, :, :, None, :, u, v]",
        ),
    ),
    *_mutants(
        "generated_involution",
        ("dx misses the path of the kernels", "dx_window + dx_kernel if", "dx_window if"),
        ("dx misses the path of the window", "dx_window + dx_kernel if", "dx_kernel if"),
        ("no ReLU", "dz = relu_backward(dt, t)", "dz = dt"),
        (
            "mean and variance are taken for constants",
            "dh, dgamma, dbeta = batchnorm_backward(dz, h, gamma, mean, inv_std)",
            _STATISTICS_FIXED,
        ),
        (
            "the cells' gradient is not averaged",
            'avgpool2d_backward(dp, x.shape, stride, stride, "ceil")',
            'avgpool2d_backward(dp * stride, x.shape, stride, stride, "ceil")',
        ),
        ("dspan_bias is one pixel's", "dspan_bias,\n    )", "dkernel[0, 0, 0],\n    )"),
        (
            "dkernel's taps are transposed",
            "dkernel = dkernel.reshape(*dkernel.shape[:3], -1)",
            "dkernel = dkernel.swapaxes(-1, -2).reshape(*dkernel.shape[:3], -1)",
        ),
        (
            "the kernels' gradient ignores the dilation",
            "involution_backward(dy, x, kernel, stride, dilation)",
            "involution_backward(dy, x, kernel, stride, 1)",
        ),
    ),
    *_mutants(
        "attention_kernel",
        (
            "the softmax's own mean stays",
            "dscore = kernel * (dkernel - mean) *",
            "dscore = kernel * dkernel *",
        ),
        (
            "the scale is forgotten",
            "(dkernel - mean) * (1 / math.sqrt(C // groups))",
            "(dkernel - mean)",
        ),
        (
            "dk forgets the dilation",
            "add_tap(dkeys, dkey, u, v, geometry, 1, dilation)",
            "add_tap(dkeys, dkey, u, v, geometry, 1, 1)",
        ),
        (
            "dq misses the positions",
            "dq += dtap * key.reshape(grouped_q.shape)",
            "dq += dtap * tap(keys, u, v, geometry, 1, dilation).reshape(grouped_q.shape)",
        ),
        ("dposition swaps the taps", "dposition[u, v] =", "dposition[v, u] ="),
        (
            "dk takes the gradient without q",
            "dkey = (dtap * grouped_q)",
            "dkey = (dtap + 0 * grouped_q)",
        ),
    ),
    *_mutants(
        "batchnorm",
        ("dx misses the path of the mean", _BN_DX, _BN_DX.replace(" - dbeta / M", "")),
        ("dx misses the path of the variance", _BN_DX, _BN_DX.replace(" - xhat * dgamma / M", "")),
        ("1/M is forgotten", _BN_DX, _BN_DX.replace("dgamma / M", "dgamma")),
        ("M counts the channels too", "M = x.size // x.shape[-1]", "M = x.size"),
        ("dx is 17 times too large", _BN_DX, _BN_DX.replace("gamma", "17 * gamma", 1)),
        ("dx misses inv_std", _BN_DX, _BN_DX.replace("inv_std * ", "")),
        ("dx misses gamma", _BN_DX, _BN_DX.replace("gamma * inv", "inv")),
        ("dgamma takes x for xhat", "(dy * xhat).sum", "(dy * x).sum"),
        ("dbeta has the wrong sign", "return dx, dgamma, dbeta", "return dx, dgamma, -dbeta"),
        ("the variance's term has the wrong sign", _BN_DX, _BN_DX.replace("- xhat", "+ xhat")),
    ),
    *_mutants(
        "channel_affine",
        ("dx misses gamma", "return dy * gamma,", "return dy,"),
        ("dgamma misses x", "(dy * x).sum", "dy.sum"),
        ("dbeta is a mean", "dy.sum(axis=axes)\n", "dy.mean(axis=axes)\n"),
        ("dgamma has the wrong sign", "(dy * x).sum", "-(dy * x).sum"),
    ),
    *_mutants(
        "maxpool2d",
        (
            "the winner's row and column are swapped",
            "np.where(argmax == u * size + v, dy, 0)",
            "np.where(argmax == v * size + u, dy, 0)",
        ),
        (
            "windows that overlap write over each other",
            "add_tap(dpadded, dwindow, u, v, geometry, stride, 1)",
            "tap(dpadded, u, v, geometry, stride, 1)[dwindow != 0] = dwindow[dwindow != 0]",
        ),
        (
            "the stride is forgotten",
            "add_tap(dpadded, dwindow, u, v, geometry, stride, 1)",
            "add_tap(dpadded, dwindow, u, v, geometry, 1, 1)",
        ),
        (
            "every pixel of the window gets the gradient",
            "np.where(argmax == u * size + v, dy, 0)",
            "dy",
        ),
        (
            "dx is shifted by a column",
            "cut_padding(dpadded, x_shape, geometry)",
            "cut_padding(np.roll(dpadded, 1, axis=2), x_shape, geometry)",
        ),
        ("the last of a tie wins", "(window > y)", "(window >= y)"),
        ("padding wins against negatives", "pad(x, geometry, -np.inf)", "pad(x, geometry)"),
    ),
    *_mutants(
        "avgpool2d",
        (
            "padded cells count",
            "share = dy / _count(x_shape, geometry, size, stride, dy.dtype)",
            "share = dy / size**2",
        ),
        (
            "nothing is divided",
            "share = dy / _count(x_shape, geometry, size, stride, dy.dtype)",
            "share = dy",
        ),
        (
            "the stride is forgotten",
            "add_tap(dpadded, share, u, v, geometry, stride, 1)",
            "add_tap(dpadded, share, u, v, geometry, 1, 1)",
        ),
        (
            "windows that overlap write over each other",
            "add_tap(dpadded, share, u, v, geometry, stride, 1)",
            "tap(dpadded, u, v, geometry, stride, 1)[...] = share",
        ),
        (
            "padded cells count, forward and backward",
            "return y / _count(x.shape, geometry, size, stride, x.dtype)",
            "return y / size**2",
            "share = dy / _count(x_shape, geometry, size, stride, dy.dtype)",
            "share = dy / size**2",
        ),
    ),
    *_mutants(
        "globalavgpool2d",
        ("divided by the height alone", "None, :] / (H * W)", "None, :] / H"),
        ("divided by the width alone", "None, :] / (H * W)", "None, :] / W"),
        ("divided by the batch too", "None, :] / (H * W)", "None, :] / (N * H * W)"),
        ("not divided", "None, :] / (H * W)", "None, :]"),
    ),
    *_mutants(
        "dense",
        ("dx has the wrong sign", "(dy @ weight.T if", "(-(dy @ weight.T) if"),
        ("dweight misses a row", "rows.T @ drows,", "rows[1:].T @ drows[1:],"),
        ("dbias is a mean", "drows.sum(axis=0)", "drows.mean(axis=0)"),
        ("dweight has the wrong sign", "rows.T @ drows,", "-(rows.T @ drows),"),
    ),
    *_mutants(
        "relu",
        ("no ReLU", "np.where(y > 0, dy, 0)", "dy * 1"),
        ("open where it is closed", "where(y > 0", "where(y <= 0"),
        ("times y itself", "np.where(y > 0, dy, 0)", "dy * y"),
        ("open at 0", "where(y > 0", "where(y >= 0"),
        ("the ReLU of the gradient", "np.where(y > 0, dy, 0)", "np.maximum(dy, 0)"),
    ),
    *_mutants(
        "flatten",
        ("in the other order", "dy.reshape(x_shape)", 'dy.reshape(x_shape, order="F")'),
        ("the wrong sign", "dy.reshape(x_shape)", "-dy.reshape(x_shape)"),
        ("samples in reverse", "dy.reshape(x_shape)", "dy[::-1].reshape(x_shape)"),
        ("shifted by one", "dy.reshape(x_shape)", "np.roll(dy, 1).reshape(x_shape)"),
    ),
    *_mutants(
        "add",
        ("db has the wrong sign", "return dy, dy", "return dy, -dy"),
        ("db is dropped", "return dy, dy", "return dy, 0 * dy"),
        ("the gradient is shared out", "return dy, dy", "return dy / 2, dy / 2"),
    ),
    *_mutants(
        "dropout",
        ("another mask", "dropout_forward(dy, rate, seed)", "dropout_forward(dy, rate, seed ^ 1)"),
        ("no mask", "dropout_forward(dy, rate, seed)", "dy / (1 - rate)"),
        (
            "not scaled up",
            "dropout_forward(dy, rate, seed)",
            "dropout_forward(dy, rate, seed) * (1 - rate)",
        ),
        (
            "the dropped values' gradient",
            "dropout_forward(dy, rate, seed)",
            "dy / (1 - rate) - dropout_forward(dy, rate, seed)",
        ),
    ),
    *_mutants(
        "softmax_cross_entropy",
        ("the wrong sign", "(probabilities - target)", "(target - probabilities)"),
        ("1/N is forgotten", "* (dloss / N)", "* dloss"),
        ("dloss is forgotten", "* (dloss / N)", "* (1 / N)"),
        (
            "label smoothing is forgotten",
            "_target(probabilities.shape, labels, label_smoothing, probabilities.dtype)",
            "_target(probabilities.shape, labels, 0.0, probabilities.dtype)",
        ),
        ("the target is dropped", "(probabilities - target)", "probabilities"),
        (
            "labels shifted by one",
            "(probabilities - target)",
            "(probabilities - np.roll(target, 1))",
        ),
    ),
)

UPDATE_MUTANTS: tuple[Mutant, ...] = (
    *_mutants(
        "sgd_update",
        (
            "Nesterov looks ahead with the gradient alone",
            "value -= lr * (g + momentum * velocity if",
            "value -= lr * (g if",
        ),
        ("velocity forgets momentum", "velocity *= momentum", "velocity *= 1"),
        (
            "weight decay grows the weights",
            "grad + weight_decay * value\n    velocity",
            "grad - weight_decay * value\n    velocity",
        ),
    ),
    *_mutants(
        "adam_update",
        ("m is not corrected", "(m / (1 - beta1**step))", "m"),
        ("v is not corrected", "np.sqrt(v / (1 - beta2**step))", "np.sqrt(v)"),
        ("eps under the root", "(1 - beta2**step)) + eps)", "(1 - beta2**step) + eps**2))"),
        ("beta1 for beta2", "v *= beta2", "v *= beta1"),
        ("decay always decoupled", "    if decoupled:\n", "    if True:\n"),
        ("v from m", "(1 - beta2) * np.square(g)", "(1 - beta2) * np.square(m)"),
    ),
)


def main() -> None:
    width = max(len(str(mutant)) for mutant in (*MUTANTS, *UPDATE_MUTANTS))
    survivors = 0
    for mutant in MUTANTS:
        rejected = rejections(load(mutant.operator, mutant.replacements), mutant.operator)
        survivors += not rejected
        print(f"{str(mutant):{width}}  {', '.join(rejected) or 'SURVIVES'}")
    for mutant in UPDATE_MUTANTS:
        rejected = update_rejections(load("updates", mutant.replacements), mutant.operator)
        survivors += not rejected
        print(f"{str(mutant):{width}}  {', '.join(rejected) or 'SURVIVES'}")
    total = len(MUTANTS) + len(UPDATE_MUTANTS)
    print(f"{total - survivors} of {total} mutants of {len(OPERATORS)} operators are caught")


if __name__ == "__main__":
    main()
