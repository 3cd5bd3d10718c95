"""The twin of one of our networks in PyTorch, as its users write it: same layers, same weights."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

import scratchnet as sn


class Involution(nn.Module):
    """Li et al.'s layer by `nn.Unfold`: copies of all windows, then a sum with their kernels."""

    def __init__(self, layer: sn.Involution2D):
        super().__init__()
        self.groups, self.K = layer.groups, layer.kernel_size
        self.pool = nn.AvgPool2d(layer.stride) if layer.stride > 1 else nn.Identity()
        self.reduce = convolution(layer.reduce)
        self.norm = batch_norm(layer.norm)
        self.span = convolution(layer.span)
        padding = layer.dilation * (self.K // 2)
        self.unfold = nn.Unfold(self.K, layer.dilation, padding, layer.stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.span(torch.relu(self.norm(self.reduce(self.pool(x)))))
        N, C = x.shape[:2]
        Ho, Wo = kernel.shape[2:]
        kernel = kernel.view(N, self.groups, self.K**2, Ho, Wo).unsqueeze(2)
        windows = self.unfold(x).view(N, self.groups, C // self.groups, self.K**2, Ho, Wo)
        return (kernel * windows).sum(dim=3).view(N, C, Ho, Wo)


def training_step(
    model: sn.Sequential,
    x: np.ndarray,
    labels: np.ndarray,
    *,
    channels_last: bool = False,
    device: str = "cpu",
    graph: bool = False,
) -> Callable[[], object]:
    """A function that takes one training step of the model's twin: forward, backward, Adam.

    graph   record the step as a CUDA graph and replay it: one launch instead of one a kernel
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    net = twin(model, x.shape[1:]).to(device=device, memory_format=memory_format).train()
    images = image_tensor(x).to(device=device, memory_format=memory_format)
    targets = torch.from_numpy(labels).to(device)
    criterion = nn.CrossEntropyLoss()
    # A recorded Adam keeps its count of steps on the GPU.
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, eps=1e-7, capturable=graph)

    def step() -> object:
        optimizer.zero_grad()
        loss = criterion(net(images), targets)
        loss.backward()
        optimizer.step()
        return loss

    return recorded(step) if graph else step


def recorded(step: Callable[[], object]) -> Callable[[], object]:
    """What replays a step from a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what a first run allocates and chooses must not be recorded
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay(kept: Callable[[], object] = step) -> None:  # its tensors, which the graph reads
        graph.replay()

    return replay


def gradients_step(net: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> Callable[[], object]:
    """A function that takes the gradients of all parameters and of x, backward alone."""
    y = net(x)
    wanted = [*net.parameters(), x]
    return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True)


def image_tensor(x: np.ndarray) -> torch.Tensor:
    """(N, H, W, C)  ->  a contiguous tensor (N, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, 3, 1)))


def twin(model: sn.Sequential, input_shape: tuple[int, ...]) -> nn.Sequential:
    """The model in PyTorch's layers, with copies of its weights."""
    modules = []
    flattened = None  # the shape (H, W, C) that was flattened before a dense layer
    for layer in model.layers:
        match layer:
            case sn.Conv2D():
                modules.append(convolution(layer))
            case sn.Involution2D():
                modules.append(Involution(layer))
            case sn.BatchNorm():
                modules.append(batch_norm(layer))
            case sn.ReLU():
                modules.append(nn.ReLU())
            case sn.MaxPool2D():
                modules.append(nn.MaxPool2d(layer.size, layer.stride))
            case sn.Flatten():
                modules.append(nn.Flatten())
                flattened = input_shape
            case sn.Dropout():
                modules.append(nn.Dropout(layer.rate))
            case sn.Dense():
                modules.append(dense(layer, flattened))
                flattened = None
            case _:
                raise TypeError(f"there is no twin of {layer!r}")
        input_shape = layer.output_shape(input_shape)
    return nn.Sequential(*modules)


def convolution(layer: sn.Conv2D) -> nn.Conv2d:
    made = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
        layer.dilation, layer.groups, bias=layer.bias is not None,
    )  # fmt: skip
    copy_in(made.weight, layer.weight.value.transpose(3, 2, 0, 1))
    if layer.bias is not None:
        copy_in(made.bias, layer.bias.value)
    return made


def dense(layer: sn.Dense, flattened: tuple[int, ...] | None) -> nn.Linear:
    """PyTorch flattens channels first, so the rows of a dense layer after that are permuted."""
    made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    weight = layer.weight.value
    if flattened is not None and len(flattened) == 3:
        rows = np.arange(layer.in_features).reshape(flattened).transpose(2, 0, 1).ravel()
        weight = weight[rows]
    copy_in(made.weight, weight.T)
    if layer.bias is not None:
        copy_in(made.bias, layer.bias.value)
    return made


def batch_norm(layer: sn.BatchNorm) -> nn.BatchNorm2d:
    """PyTorch's momentum is the share of the new batch."""
    made = nn.BatchNorm2d(layer.channels, layer.eps, 1 - layer.momentum)
    copy_in(made.weight, layer.gamma.value)
    copy_in(made.bias, layer.beta.value)
    return made


def copy_in(tensor: torch.Tensor, array: np.ndarray) -> None:
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(array)))
