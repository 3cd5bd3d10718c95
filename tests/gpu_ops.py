"""The cuda backend behind NumPy arrays, so that the tests of every backend can ask it."""

import functools
from typing import Any

import numpy as np

from scratchnet.backends import UPDATES, get_backend


class OnHost:
    """The backend's functions: what goes in is copied to the GPU, what comes out is copied back."""

    def __init__(self) -> None:
        self.gpu = get_backend("cuda")

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.gpu, name)
        wrapped = self._update(function) if name in UPDATES else self._pure(function)
        return functools.wraps(function)(wrapped)

    def _pure(self, function: Any) -> Any:
        def call(*arguments, **named):
            result = function(*arguments, **named)
            if isinstance(result, tuple):
                return tuple(self._down(value) for value in result)
            return self._down(result)

        return call

    def _update(self, function: Any) -> Any:
        def call(**named):
            arrays = {k: v for k, v in named.items() if isinstance(v, np.ndarray)}
            uploaded = {name: self.gpu.to_device(array) for name, array in arrays.items()}
            result = function(**(named | uploaded))
            for name, array in arrays.items():
                array[...] = self.gpu.to_host(uploaded[name])
            return result

        return call

    def _down(self, value: Any) -> Any:
        host = self.gpu.to_host(value)
        return float(host) if isinstance(host, np.ndarray) and host.ndim == 0 else host
