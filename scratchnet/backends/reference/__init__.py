"""The definition: plain NumPy, any float dtype, short enough to read aloud."""

from scratchnet.backends.host import (
    changing,
    copy_into,
    count_correct,
    fold_norm,
    inv_std_of,
    norm_of,
    normalised,
    pack,
    recorded,
    scale_all,
    to_device,
    to_host,
    update_each,
    update_running,
    zeros_like,
)
from scratchnet.backends.reference.add import add_backward, add_forward
from scratchnet.backends.reference.attention_kernel import (
    attention_kernel_backward,
    attention_kernel_forward,
)
from scratchnet.backends.reference.avgpool2d import avgpool2d_backward, avgpool2d_forward
from scratchnet.backends.reference.batchnorm import batchnorm_backward, batchnorm_forward
from scratchnet.backends.reference.channel_affine import (
    channel_affine_backward,
    channel_affine_forward,
)
from scratchnet.backends.reference.conv2d import conv2d_backward, conv2d_forward
from scratchnet.backends.reference.conv2d_relu import conv2d_relu_backward, conv2d_relu_forward
from scratchnet.backends.reference.conv2d_relu_maxpool2d import (
    conv2d_relu_maxpool2d_backward,
    conv2d_relu_maxpool2d_forward,
)
from scratchnet.backends.reference.dense import dense_backward, dense_forward
from scratchnet.backends.reference.dropout import dropout_backward, dropout_forward
from scratchnet.backends.reference.flatten import flatten_backward, flatten_forward
from scratchnet.backends.reference.generated_involution import (
    generated_involution_backward,
    generated_involution_forward,
)
from scratchnet.backends.reference.globalavgpool2d import (
    globalavgpool2d_backward,
    globalavgpool2d_forward,
)
from scratchnet.backends.reference.involution import involution_backward, involution_forward
from scratchnet.backends.reference.maxpool2d import maxpool2d_backward, maxpool2d_forward
from scratchnet.backends.reference.relu import relu_backward, relu_forward
from scratchnet.backends.reference.softmax_cross_entropy import (
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
)
from scratchnet.backends.reference.updates import adam_update, sgd_update

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
