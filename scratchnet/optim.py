"""Optimizers; their equations stand in `backends/reference/updates.py`."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from scratchnet.backends import get_backend
from scratchnet.checkpoint import check_arrays
from scratchnet.checks import check_fraction, check_number
from scratchnet.layers.base import Parameter


class Optimizer:
    """What optimizers share: the trainable parameters, their memory by name, and a step count.

    lr may be changed between steps, as a schedule does.
    raises ValueError where there is nothing to train or the learning rate is not accepted
    """

    memory_names: tuple[str, ...] = ()

    def __init__(self, parameters: Iterable[Parameter], lr: float):
        self.parameters = [p for p in parameters if p.trainable]
        if not self.parameters:
            raise ValueError(f"{type(self).__name__}: there are no trainable parameters")
        self.lr = check_number(type(self).__name__, "lr", lr, 0)
        self.steps = 0
        self.memory = {
            name: [np.zeros_like(p.value) for p in self.parameters] for name in self.memory_names
        }

    def step(self) -> None:
        """Change every parameter by its gradient. raises RuntimeError where one has none."""
        for parameter in self.parameters:
            if parameter.grad is None:
                raise RuntimeError(f"{parameter.name} has no gradient: run backward first")
        self.steps += 1
        for i, parameter in enumerate(self.parameters):
            memory = [self.memory[name][i] for name in self.memory_names]
            self.update(get_backend(parameter.backend), parameter, *memory)

    def update(self, ops: Any, parameter: Parameter, *memory: np.ndarray) -> None:
        """Change one parameter and its memory, in place."""
        raise NotImplementedError(f"{type(self).__name__} has no update")

    def state(self) -> dict[str, np.ndarray]:
        """The step count and the memory, by name.

        raises ValueError where two parameters share a name, as those of separate networks may
        """
        names = [parameter.name for parameter in self.parameters]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{type(self).__name__}: two parameters are named {name}")
        named = {
            f"{name}.{parameter.name}": array
            for name, arrays in self.memory.items()
            for parameter, array in zip(self.parameters, arrays, strict=True)
        }
        return {"steps": np.array(self.steps), **named}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Copy in what `state` returned. raises CheckpointError where names or shapes differ."""
        expected = self.state()
        check_arrays(f"the optimizer {type(self).__name__}", state, expected)
        self.steps = int(state["steps"])
        for name, array in expected.items():
            if name != "steps":
                array[...] = state[name]


class SGD(Optimizer):
    """Gradient descent with momentum, Nesterov's if asked for."""

    memory_names = ("velocity",)

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ):
        super().__init__(parameters, lr)
        self.momentum = check_number("SGD", "momentum", momentum, 0, 1)
        self.nesterov = nesterov
        self.weight_decay = check_number("SGD", "weight_decay", weight_decay, 0)

    def update(self, ops: Any, parameter: Parameter, velocity: np.ndarray) -> None:
        ops.sgd_update(
            parameter.value, parameter.grad, velocity,
            self.lr, self.momentum, self.nesterov, self.weight_decay,
        )  # fmt: skip


class Adam(Optimizer):
    """Steps of a size that the gradient's first two moments set."""

    memory_names = ("m", "v")
    decoupled = False

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        weight_decay: float = 0.0,
    ):
        super().__init__(parameters, lr)
        owner = type(self).__name__
        if len(betas) != 2:
            raise ValueError(f"{owner}: betas must be two numbers, got {betas!r}")
        self.betas = tuple(check_fraction(owner, "betas", beta) for beta in betas)
        self.eps = check_number(owner, "eps", eps, 0, above=True)
        self.weight_decay = check_number(owner, "weight_decay", weight_decay, 0)

    def update(self, ops: Any, parameter: Parameter, m: np.ndarray, v: np.ndarray) -> None:
        ops.adam_update(
            parameter.value, parameter.grad, m, v, self.steps,
            self.lr, *self.betas, self.eps, self.weight_decay, self.decoupled,
        )  # fmt: skip


class AdamW(Adam):
    """Adam with weight decay that the moments do not scale."""

    decoupled = True

    def __init__(
        self,
        parameters: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        weight_decay: float = 1e-2,
    ):
        super().__init__(parameters, lr, betas, eps, weight_decay)


def clip_gradients(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients down together so that their common norm is at most max_norm.

    Returns the norm before. Source: Pascanu et al. 2013, algorithm 1.
    raises ValueError where max_norm is not above 0
    """
    check_number("clip_gradients", "max_norm", max_norm, 0, above=True)
    grads = [p.grad for p in parameters if p.trainable and p.grad is not None]
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads))
    if norm > max_norm:
        for grad in grads:
            grad *= max_norm / norm
    return norm
