"""Batch normalisation as a layer; the equations stand in `backends/reference/batchnorm.py`."""

import numpy as np

from scratchnet.checks import check_number, check_per_channel, check_whole
from scratchnet.layers.base import Layer, Parameter


class BatchNorm(Layer):
    """Normalise each channel over the batch in training, by running statistics in evaluation.

    (..., channels) -> alike. Parameters: gamma, ones, and beta, zeros; running_mean and
    running_var, not trainable, which follow

        running = momentum * running + (1 - momentum) * batch

    with the biased variance of the batch. raises ValueError for settings out of range
    """

    def __init__(self, channels: int, momentum: float = 0.99, eps: float = 1e-3):
        super().__init__()
        self.channels = check_whole("BatchNorm", "channels", channels)
        self.momentum = check_number("BatchNorm", "momentum", momentum, 0, 1)
        self.eps = check_number("BatchNorm", "eps", eps, 0, above=True)
        self.gamma = Parameter("gamma", np.ones(channels, np.float32))
        self.beta = Parameter("beta", np.zeros(channels, np.float32))
        self.running_mean = Parameter("running_mean", np.zeros(channels, np.float32), False)
        self.running_var = Parameter("running_var", np.ones(channels, np.float32), False)
        self.own = [self.gamma, self.beta, self.running_mean, self.running_var]

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        gamma, beta = self.gamma.value, self.beta.value
        check_per_channel("BatchNorm", x, gamma=gamma)
        if not training:
            mean, inv_std = self.running_statistics()
            scale, shift = self.ops.fold_norm(gamma, beta, mean, inv_std)
            return self.ops.channel_affine_forward(x, scale, shift)
        y, mean, inv_std = self.ops.batchnorm_forward(x, gamma, beta, self.eps)
        self.x, self.mean, self.inv_std = x, mean, inv_std
        self.update_running(mean, inv_std)
        return y

    def backward(self, dy: np.ndarray, need_dx: bool = True) -> np.ndarray:
        x = self.remembered("x")
        dx, self.gamma.grad, self.beta.grad = self.ops.batchnorm_backward(
            dy, x, self.gamma.value, self.mean, self.inv_std
        )
        return dx

    def running_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """mean and inv_std (channels,) of the running statistics."""
        inv_std = self.ops.inv_std_of(self.running_var.value, self.eps)
        return self.running_mean.value, inv_std

    def update_running(self, mean: np.ndarray, inv_std: np.ndarray) -> None:
        """Let the running statistics follow those of a batch."""
        running = self.running_mean.value, self.running_var.value
        self.ops.update_running(*running, mean, inv_std, self.momentum, self.eps)

    def __repr__(self) -> str:
        return f"BatchNorm({self.channels}, momentum={self.momentum}, eps={self.eps})"
