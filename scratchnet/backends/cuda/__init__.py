"""The same functions on an NVIDIA GPU, compiled by Numba.

Arrays stay on the GPU: functions take an `Array`, or copy a NumPy array there, and return `Array`s.
Arrays of PyTorch and CuPy come in without a copy, and take results without one, through
`__cuda_array_interface__`. `device.py` is the one module that imports numba.cuda.
"""

from scratchnet.backends.cuda import device
from scratchnet.backends.cuda.add import add_backward, add_forward
from scratchnet.backends.cuda.arrays import copy_into, pack, to_device, to_host, zeros_like
from scratchnet.backends.cuda.attention_kernel import (
    attention_kernel_backward,
    attention_kernel_forward,
)
from scratchnet.backends.cuda.avgpool2d import avgpool2d_backward, avgpool2d_forward
from scratchnet.backends.cuda.batchnorm import batchnorm_backward, batchnorm_forward
from scratchnet.backends.cuda.channel_affine import (
    channel_affine_backward,
    channel_affine_forward,
)
from scratchnet.backends.cuda.conv2d import conv2d_backward, conv2d_forward
from scratchnet.backends.cuda.conv2d_relu import conv2d_relu_backward, conv2d_relu_forward
from scratchnet.backends.cuda.conv2d_relu_maxpool2d import (
    conv2d_relu_maxpool2d_backward,
    conv2d_relu_maxpool2d_forward,
)
from scratchnet.backends.cuda.dense import dense_backward, dense_forward
from scratchnet.backends.cuda.dropout import dropout_backward, dropout_forward
from scratchnet.backends.cuda.flatten import flatten_backward, flatten_forward
from scratchnet.backends.cuda.generated_involution import (
    generated_involution_backward,
    generated_involution_forward,
)
from scratchnet.backends.cuda.globalavgpool2d import (
    globalavgpool2d_backward,
    globalavgpool2d_forward,
)
from scratchnet.backends.cuda.helpers import (
    count_correct,
    fold_norm,
    inv_std_of,
    norm_of,
    normalised,
    scale_all,
    update_running,
)
from scratchnet.backends.cuda.involution import involution_backward, involution_forward
from scratchnet.backends.cuda.maxpool2d import maxpool2d_backward, maxpool2d_forward
from scratchnet.backends.cuda.recording import changing, recorded
from scratchnet.backends.cuda.relu import relu_backward, relu_forward
from scratchnet.backends.cuda.softmax_cross_entropy import (
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from scratchnet.backends.cuda.updates import adam_update, sgd_update, update_each

device.require_gpu()

__all__ = [
    "adam_update",
    "add_backward",
    "add_forward",
    "attention_kernel_backward",
    "attention_kernel_forward",
    "avgpool2d_backward",
    "avgpool2d_forward",
    "batchnorm_backward",
    "batchnorm_forward",
    "changing",
    "channel_affine_backward",
    "channel_affine_forward",
    "conv2d_backward",
    "conv2d_forward",
    "conv2d_relu_backward",
    "conv2d_relu_forward",
    "conv2d_relu_maxpool2d_backward",
    "conv2d_relu_maxpool2d_forward",
    "copy_into",
    "count_correct",
    "dense_backward",
    "dense_forward",
    "dropout_backward",
    "dropout_forward",
    "flatten_backward",
    "flatten_forward",
    "fold_norm",
    "generated_involution_backward",
    "generated_involution_forward",
    "globalavgpool2d_backward",
    "globalavgpool2d_forward",
    "inv_std_of",
    "involution_backward",
    "involution_forward",
    "maxpool2d_backward",
    "maxpool2d_forward",
    "norm_of",
    "normalised",
    "pack",
    "recorded",
    "relu_backward",
    "relu_forward",
    "scale_all",
    "sgd_update",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "to_device",
    "to_host",
    "update_each",
    "update_running",
    "zeros_like",
]
