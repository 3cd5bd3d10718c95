"""The twin of one of our networks in Keras on TensorFlow, as its users write it: same layers, same
weights.
"""

import os
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import scratchnet as sn  # noqa: E402


class Involution(keras.layers.Layer):
    """The layer of the Keras example: copies of all windows, then a sum with their kernels."""

    def __init__(self, layer: sn.Involution2D):
        super().__init__()
        self.groups, self.K = layer.groups, layer.kernel_size
        self.generate = keras.Sequential(
            [
                convolution(layer.reduce),
                keras.layers.BatchNormalization(
                    momentum=layer.norm.momentum, epsilon=layer.norm.eps
                ),
                keras.layers.ReLU(),
                convolution(layer.span),
            ]
        )

    def call(self, x, training=None):
        H, W, C = x.shape[1:]
        kernel = self.generate(x, training=training)
        kernel = tf.reshape(kernel, (-1, H, W, self.K**2, 1, self.groups))
        window = (1, self.K, self.K, 1)
        windows = tf.image.extract_patches(x, window, (1, 1, 1, 1), (1, 1, 1, 1), "SAME")
        windows = tf.reshape(windows, (-1, H, W, self.K**2, C // self.groups, self.groups))
        return tf.reshape(tf.reduce_sum(kernel * windows, axis=3), (-1, H, W, C))


def training_step(model: sn.Sequential, x: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """A function that takes one training step of the model's twin: forward, backward, Adam.

    It calls the compiled step that `model.fit` calls, without fit's callbacks and data pipeline.
    """
    net = twin(model, x.shape[1:])
    net.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    net.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors((x, labels)).repeat())
    return lambda: net.train_function(batches)


def twin(model: sn.Sequential, input_shape: tuple[int, ...]) -> keras.Sequential:
    """The model in Keras' layers, with copies of its weights."""
    layers = [keras.Input(input_shape)]
    for layer in model.layers:
        match layer:
            case sn.Conv2D():
                layers.append(convolution(layer))
            case sn.Involution2D():
                layers.append(Involution(layer))
            case sn.ReLU():
                layers.append(keras.layers.ReLU())
            case sn.MaxPool2D():
                layers.append(keras.layers.MaxPooling2D(layer.size, layer.stride))
            case sn.Flatten():
                layers.append(keras.layers.Flatten())
            case sn.Dropout():
                layers.append(keras.layers.Dropout(layer.rate))
            case sn.Dense():
                layers.append(keras.layers.Dense(layer.out_features))
            case _:
                raise TypeError(f"there is no twin of {layer!r}")
    net = keras.Sequential(layers)
    # Both list weights layer by layer in the same order and layout.
    net.set_weights([p.value for p in model.parameters()])
    return net


def convolution(layer: sn.Conv2D) -> keras.layers.Conv2D:
    return keras.layers.Conv2D(layer.out_channels, layer.kernel_size, padding=layer.padding)
