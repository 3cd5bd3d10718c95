"""Optimizers; their equations stand in `backends/reference/updates.py`."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from scratchnet.backends import get_backend
from scratchnet.checkpoint import CheckpointError, check_arrays
from scratchnet.checks import check_fraction, check_number
from scratchnet.layers.base import Parameter


class Optimizer:
    """What optimizers share: the trainable parameters, their memory, and a step count.

    lr may be changed between steps, as a schedule does. Which parameters are trainable is asked
    once, here.
    raises TypeError for what are no parameters; ValueError where there is nothing to train, one is
    given twice, or the learning rate is not accepted
    """

    memory_names: tuple[str, ...] = ()

    def __init__(self, parameters: Iterable[Parameter], lr: float):
        owner = type(self).__name__
        self.parameters = [p for p in _all_parameters(owner, parameters) if p.trainable]
        if not self.parameters:
            raise ValueError(f"{owner}: there are no trainable parameters")
        self.lr = check_number(owner, "lr", lr, 0)
        self.steps = 0
        self.backend = self.parameters[0].backend
        values = [p.value for p in self.parameters]
        self.memory = {
            name: get_backend(self.backend).zeros_like(values) for name in self.memory_names
        }

    def step(self) -> None:
        """Change every parameter by its gradient. raises RuntimeError where one has none."""
        for parameter in self.parameters:
            if parameter.grad is None:
                raise RuntimeError(f"{parameter.name} has no gradient: run backward first")
        self.follow()
        ops = get_backend(self.backend)
        ops.changing(self._count)
        values, grads = [p.value for p in self.parameters], [p.grad for p in self.parameters]
        update, *_ = self.update(ops)
        settings = ops.changing(lambda: self.update(ops)[1:])
        ops.update_each(update, values, grads, list(self.memory.values()), settings)

    def _count(self) -> None:
        self.steps += 1

    def follow(self) -> None:
        """Move the memory to the backend that the parameters are on."""
        backend = self.parameters[0].backend
        if backend != self.backend:
            host, ops = get_backend(self.backend).to_host, get_backend(backend)
            self.memory = {k: ops.pack([host(a) for a in v]) for k, v in self.memory.items()}
            self.backend = backend

    def update(self, ops: Any) -> tuple:
        """The backend's update function, and what it takes after the arrays."""
        raise NotImplementedError(f"{type(self).__name__} has no update")

    def state(self) -> dict[str, np.ndarray]:
        """Copies of the step count and the memory of each parameter, by its place among them: "m.0"
        is Adam's m of the first.
        """
        to_host = get_backend(self.backend).to_host
        named = {name: np.array(to_host(array)) for name, array in self._named_memory().items()}
        return {"steps": np.array(self.steps), **named}

    def _named_memory(self) -> dict[str, Any]:
        return {
            f"{name}.{place}": array
            for name, arrays in self.memory.items()
            for place, array in enumerate(arrays)
        }

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Copy in what `state` returned. raises CheckpointError where names or shapes differ."""
        memory = self._named_memory()
        expected = {"steps": np.array(self.steps), **memory}
        check_arrays(f"the optimizer {type(self).__name__}", state, expected)
        if state["steps"] < 0:
            raise CheckpointError(f"the optimizer's steps must be at least 0, got {state['steps']}")
        self.steps = int(state["steps"])
        for name, array in memory.items():
            get_backend(self.backend).copy_into(array, state[name])


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

    def update(self, ops: Any) -> tuple:
        return ops.sgd_update, self.lr, self.momentum, self.nesterov, self.weight_decay


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
        if not isinstance(betas, Sequence) or len(betas) != 2:
            raise ValueError(f"{owner}: betas must be two numbers, got {betas!r}")
        self.betas = tuple(check_fraction(owner, "betas", beta) for beta in betas)
        self.eps = check_number(owner, "eps", eps, 0, above=True)
        self.weight_decay = check_number(owner, "weight_decay", weight_decay, 0)

    def update(self, ops: Any) -> tuple:
        moments = self.steps, self.lr, *self.betas, self.eps
        return ops.adam_update, *moments, self.weight_decay, self.decoupled


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
    parameters = _all_parameters("clip_gradients", parameters)
    parameters = [p for p in parameters if p.trainable and p.grad is not None]
    if not parameters:
        return 0.0
    ops, grads = parameters[0].ops, [p.grad for p in parameters]
    norm = ops.norm_of(grads)
    if norm > max_norm:
        ops.scale_all(grads, max_norm / norm)
    return norm


def _all_parameters(owner: str, parameters: Iterable[Parameter]) -> list[Parameter]:
    """A list of what is a parameter each, and each once."""
    given = list(parameters) if isinstance(parameters, Iterable) else [parameters]
    for parameter in given:
        if not isinstance(parameter, Parameter):
            raise TypeError(
                f"{owner}: parameters must be those of a network, as network.parameters() lists "
                f"them, got {type(parameter).__name__}"
            )
    if len({id(parameter) for parameter in given}) < len(given):
        raise ValueError(f"{owner}: a parameter is given twice")
    return given
