"""What every layer is: parameters, what backward needs, and a backend that does the arithmetic."""

from collections.abc import Iterator

import numpy as np

from scratchnet import backends
from scratchnet.checkpoint import check_arrays

DEFAULT_BACKEND = "cpu"


class Parameter:
    """A named array that a layer owns.

    name        where it stands in what its layer was last put into, such as "4.body.0.weight"
    value       the array
    grad        the gradient of the loss with respect to it, like value; None before a backward
    backend     the backend whose array it is
    trainable   whether an optimizer changes it (running statistics are not trainable)
    """

    def __init__(self, name: str, value: np.ndarray, trainable: bool = True):
        self.name = name
        self.value = value
        self.backend = DEFAULT_BACKEND
        self.grad: np.ndarray | None = None
        self.trainable = trainable

    @property
    def ops(self):
        """The functions of its backend."""
        return backends.get_backend(self.backend)

    def to_host(self) -> np.ndarray:
        """The value as a NumPy array; a copy where it lives elsewhere."""
        return self.ops.to_host(self.value)

    def __repr__(self) -> str:
        return f"Parameter({self.name}, {tuple(self.value.shape)}, {self.value.dtype})"


class Layer:
    """One step of a network, without arithmetic of its own.

    A layer with parameters lists them in `own`; a layer made of layers lists those in `parts`, by
    name. Everything else here follows from the two.
    """

    def __init__(self) -> None:
        self.own: list[Parameter] = []
        self.parts: dict[str, Layer] = {}
        self.backend = DEFAULT_BACKEND

    @property
    def ops(self):
        """The backend's functions."""
        return backends.get_backend(self.backend)

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        """The layer's output. Remembers what backward needs, only if training."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray | None:
        """From the gradient of the output to that of the input, of the last training forward.

        Parameter.grad is written anew each time, never added to. With need_dx=False the input's
        gradient, which the first layer of a network has no use for, is not computed.
        """
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one output sample for one input sample, both without the batch axis."""
        return tuple(input_shape)

    def flops(self, input_shape: tuple[int, ...]) -> int:
        """Multiply-adds of a forward pass for one sample of that shape."""
        return 0

    def parameters(self) -> list[Parameter]:
        """The layer's own parameters, then those of its parts."""
        return list(self.named_parameters().values())

    def named_parameters(self) -> dict[str, Parameter]:
        """The same by name, as seen from this layer, whatever else its parts stand in."""
        named = {p.name.rpartition(".")[2]: p for p in self.own}
        for name, part in self.parts.items():
            named |= {f"{name}.{path}": p for path, p in part.named_parameters().items()}
        return named

    def generators(self) -> list[np.random.Generator]:
        """The sources of randomness that a training forward draws from."""
        return [g for part in self.parts.values() for g in part.generators()]

    def leaves(self) -> Iterator["Layer"]:
        """The layers that are made of no other layers, in order."""
        for part in self.parts.values():
            yield from part.leaves()
        if not self.parts:
            yield self

    def to(self, backend: str) -> "Layer":
        """Let another backend do the arithmetic: "reference", "cpu" or "cuda". Returns the layer.

        The parameters move to where it computes. raises ValueError for an unknown name,
        BackendError where it cannot run here
        """
        pack = backends.get_backend(backend).pack
        parameters = self.parameters()
        # Those that an optimizer walks over lie next to each other.
        for trainable in (True, False):
            alike = [p for p in parameters if p.trainable is trainable]
            for parameter, value in zip(alike, pack([p.to_host() for p in alike]), strict=True):
                if value is not parameter.value:
                    parameter.value, parameter.grad = value, None
                parameter.backend = backend
        self._use(backend)
        return self

    def _use(self, backend: str) -> None:
        self.backend = backend
        for part in self.parts.values():
            part._use(backend)

    def astype(self, dtype: np.typing.DTypeLike) -> "Layer":
        """Convert every parameter: float32 to train, float64 to check. Returns the layer.

        raises TypeError for another dtype
        """
        if np.dtype(dtype) not in (np.float32, np.float64):
            raise TypeError(f"astype: dtype must be float32 or float64, got {np.dtype(dtype)}")
        for parameter in self.parameters():
            parameter.value = parameter.value.astype(dtype)
            parameter.grad = None
        return self

    def state(self) -> dict[str, np.ndarray]:
        """A copy of every parameter's value by name, running statistics included."""
        return {name: np.array(p.to_host()) for name, p in self.named_parameters().items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Copy in what `state` of a like network returned.

        raises CheckpointError where names or shapes differ; then nothing is changed
        """
        named = self.named_parameters()
        check_arrays("the network", state, {name: p.value for name, p in named.items()})
        for name, parameter in named.items():
            parameter.ops.copy_into(parameter.value, state[name])

    def add_parts(self, parts: dict[str, "Layer"]) -> None:
        """Make these layers the parts, and name their parameters by where they stand.

        raises TypeError for what is no layer; ValueError where one stands in two places: each
        remembers what its one backward needs
        """
        seen: dict[int, str] = {}
        for name, part in parts.items():
            if not isinstance(part, Layer):
                raise TypeError(f"{type(self).__name__} takes layers, got {type(part).__name__}")
            for layer in part.and_parts():
                if id(layer) in seen:
                    raise ValueError(
                        f"{type(self).__name__}: {layer!r} stands in two places ({seen[id(layer)]} "
                        f"and {name}); make a layer for each"
                    )
                seen[id(layer)] = name
        self.parts = parts
        for name, parameter in self.named_parameters().items():
            parameter.name = name

    def and_parts(self) -> Iterator["Layer"]:
        """This layer, its parts, their parts and so on."""
        yield self
        for part in self.parts.values():
            yield from part.and_parts()

    def remembered(self, name: str):
        """What the last training forward stored; a clear error where there was none, or where it
        lies on a GPU and the layer has moved away from there.
        """
        value = getattr(self, name, None)
        if isinstance(value, np.ndarray):
            return value
        on_host = self.ops.__name__.rpartition(".")[2] in backends.BACKENDS
        left_behind = on_host and hasattr(value, "__cuda_array_interface__")
        if value is None or left_behind:
            raise RuntimeError(
                f"{type(self).__name__}.backward needs a forward(x, training=True) before it"
                f"{' on the same backend' if left_behind else ''}"
            )
        return value
