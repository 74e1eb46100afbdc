"""Layers and predictions without transport: importable without TorchRL or TensorDict."""

from wmkit.nn.block_linear import BlockLinear, block_product
from wmkit.nn.conv import ChannelNorm, DoublingConv, HalvingConv, patches
from wmkit.nn.features import Feature, FeaturePair, rows_are_free
from wmkit.nn.init import init_hidden, init_output
from wmkit.nn.mlp import MLP, DenseNormAct
from wmkit.nn.predictions import Bernoulli, OneHotCategorical, SquaredError, SymlogTwoHot
from wmkit.nn.style import STYLE_2023, STYLE_2024, LayerStyle, RMSNorm

__all__ = [
    "MLP",
    "STYLE_2023",
    "STYLE_2024",
    "Bernoulli",
    "BlockLinear",
    "ChannelNorm",
    "DenseNormAct",
    "DoublingConv",
    "Feature",
    "FeaturePair",
    "HalvingConv",
    "LayerStyle",
    "OneHotCategorical",
    "RMSNorm",
    "SquaredError",
    "SymlogTwoHot",
    "block_product",
    "init_hidden",
    "init_output",
    "patches",
    "rows_are_free",
]
