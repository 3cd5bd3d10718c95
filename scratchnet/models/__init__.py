"""Networks made of layers."""

from functools import partial

from scratchnet.models.compact import compact_involution
from scratchnet.models.matched import small_convolution, wide_involution
from scratchnet.models.rednet import rednet
from scratchnet.models.report import ANCESTORS, CLASSES, INPUT_SHAPES, OPERATORS, report_network
from scratchnet.models.summary import summary

# What makes a network for a data set of the report, by the network's name: (dataset, rng=...).
NETWORKS = {
    **{name: partial(report_network, operator=name) for name in (*OPERATORS, *ANCESTORS)},
    "small-convolution": small_convolution,
    "wide-involution": wide_involution,
    "compact-involution": compact_involution,
}

__all__ = [
    "CLASSES",
    "INPUT_SHAPES",
    "NETWORKS",
    "OPERATORS",
    "compact_involution",
    "rednet",
    "report_network",
    "small_convolution",
    "summary",
    "wide_involution",
]
