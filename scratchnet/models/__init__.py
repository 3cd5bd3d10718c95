"""Networks made of layers."""

from scratchnet.models.rednet import rednet
from scratchnet.models.report import CLASSES, INPUT_SHAPES, OPERATORS, report_network
from scratchnet.models.summary import summary

__all__ = ["CLASSES", "INPUT_SHAPES", "OPERATORS", "rednet", "report_network", "summary"]
