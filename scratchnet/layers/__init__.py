"""Layers: parameters and what backward needs. The arithmetic is a backend's."""

from scratchnet.layers.activations import Dropout, ReLU
from scratchnet.layers.attention import WindowAttention2D
from scratchnet.layers.base import Layer, Parameter
from scratchnet.layers.containers import Residual, Sequential
from scratchnet.layers.conv import Conv2D
from scratchnet.layers.dense import Dense, Flatten
from scratchnet.layers.involution import Involution2D
from scratchnet.layers.norm import BatchNorm
from scratchnet.layers.pooling import AvgPool2D, GlobalAvgPool2D, MaxPool2D

__all__ = [
    "AvgPool2D",
    "BatchNorm",
    "Conv2D",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2D",
    "Involution2D",
    "Layer",
    "MaxPool2D",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "WindowAttention2D",
]
