"""Optimizer steps, in place.

Sources: momentum and Nesterov's form, Sutskever et al. 2013, as PyTorch writes them; Adam, Kingma
and Ba 2015, Algorithm 1; decoupled weight decay, Loshchilov and Hutter 2019, Algorithm 2.
"""

import numpy as np

from scratchnet.checks import check_step, check_update


def sgd_update(
    value: np.ndarray,
    grad: np.ndarray,
    velocity: np.ndarray,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """One step of gradient descent with momentum; value and velocity change.

        g = grad + weight_decay * value
        velocity = momentum * velocity + g
        value   -= lr * (g + momentum * velocity if nesterov else velocity)

    value, grad, velocity   one shape and dtype
    """
    check_update("sgd_update", value, grad=grad, velocity=velocity)
    g = grad + weight_decay * value
    velocity *= momentum
    velocity += g
    value -= lr * (g + momentum * velocity if nesterov else velocity)


def adam_update(
    value: np.ndarray,
    grad: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """Step number `step` (from 1) of Adam, or of AdamW if decoupled; value, m and v change.

        g = grad (+ weight_decay * value, if not decoupled)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        value -= lr * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
        value -= lr * weight_decay * value_before, if decoupled

    value, grad, m, v   one shape and dtype
    """
    check_update("adam_update", value, grad=grad, m=m, v=v)
    check_step("adam_update", step)
    g = grad if decoupled else grad + weight_decay * value
    m *= beta1
    m += (1 - beta1) * g
    v *= beta2
    v += (1 - beta2) * np.square(g)
    if decoupled:
        value *= 1 - lr * weight_decay
    value -= lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
