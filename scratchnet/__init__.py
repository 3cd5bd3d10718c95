"""scratchnet: convolution and involution networks from scratch, every backward pass by hand."""

from scratchnet import data, models
from scratchnet.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from scratchnet.gradcheck import GradientMismatch, check_gradients, gradcheck
from scratchnet.history import History
from scratchnet.layers import (
    AvgPool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool2D,
    Involution2D,
    Layer,
    MaxPool2D,
    Parameter,
    ReLU,
    Residual,
    Sequential,
    WindowAttention2D,
)
from scratchnet.losses import SoftmaxCrossEntropy
from scratchnet.models import summary
from scratchnet.optim import SGD, Adam, AdamW, clip_gradients
from scratchnet.schedules import ConstantSchedule, CosineSchedule, StepSchedule
from scratchnet.training import TrainingDiverged, evaluate, fit, load_model, predict

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "AvgPool2D",
    "BatchNorm",
    "CheckpointError",
    "ConstantSchedule",
    "Conv2D",
    "CosineSchedule",
    "Dense",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2D",
    "GradientMismatch",
    "History",
    "Involution2D",
    "Layer",
    "MaxPool2D",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "SoftmaxCrossEntropy",
    "StepSchedule",
    "TrainingDiverged",
    "WindowAttention2D",
    "check_gradients",
    "clip_gradients",
    "data",
    "evaluate",
    "fit",
    "gradcheck",
    "load_checkpoint",
    "load_model",
    "models",
    "predict",
    "save_checkpoint",
    "summary",
]
