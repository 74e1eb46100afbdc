"""Layers and predictions without transport: importable without TorchRL or TensorDict."""

from wmkit.nn.block_linear import BlockLinear, side_by_side
from wmkit.nn.conv import DoublingConv, HalvingConv, patches
from wmkit.nn.conv_stages import ConvStage, UpsamplingConv, UpsamplingStage
from wmkit.nn.conv_unpadded import UnpaddedConv, UnpaddedTransposedConv
from wmkit.nn.deferred import LoopWeight, loop_weights
from wmkit.nn.dropout import Dropout
from wmkit.nn.features import Feature, FeaturePair, Products, rows_are_free
from wmkit.nn.first_layers import FirstLayers
from wmkit.nn.init import init_hidden, init_output
from wmkit.nn.kept import kept, weights_unchanged
from wmkit.nn.latents import CategoricalLatent, GaussianLatent
from wmkit.nn.linear import Linear
from wmkit.nn.mlp import MLP, DenseNormAct
from wmkit.nn.norms import Activation, ChannelNorm, ChannelRMSNorm, channel_norm
from wmkit.nn.perceptron import Perceptron
from wmkit.nn.policies import TanhNormal, TruncatedNormal
from wmkit.nn.predictions import (
    Bernoulli,
    BoundedNormal,
    Categorical,
    OneHotCategorical,
    SquaredError,
    SymlogSquaredError,
    total_loss,
)
from wmkit.nn.rms_norm import RMSNorm
from wmkit.nn.style import STYLE_2023, STYLE_2024, LayerStyle
from wmkit.nn.two_hot import LastLayer, SymexpTwoHot, SymlogTwoHot
from wmkit.nn.unit_normal import UnitNormal

__all__ = [
    "MLP",
    "STYLE_2023",
    "STYLE_2024",
    "Activation",
    "Bernoulli",
    "BlockLinear",
    "BoundedNormal",
    "Categorical",
    "CategoricalLatent",
    "ChannelNorm",
    "ChannelRMSNorm",
    "ConvStage",
    "DenseNormAct",
    "DoublingConv",
    "Dropout",
    "Feature",
    "FeaturePair",
    "FirstLayers",
    "GaussianLatent",
    "HalvingConv",
    "LastLayer",
    "LayerStyle",
    "Linear",
    "LoopWeight",
    "OneHotCategorical",
    "Perceptron",
    "Products",
    "RMSNorm",
    "SquaredError",
    "SymexpTwoHot",
    "SymlogSquaredError",
    "SymlogTwoHot",
    "TanhNormal",
    "TruncatedNormal",
    "UnitNormal",
    "UnpaddedConv",
    "UnpaddedTransposedConv",
    "UpsamplingConv",
    "UpsamplingStage",
    "channel_norm",
    "init_hidden",
    "init_output",
    "kept",
    "loop_weights",
    "patches",
    "rows_are_free",
    "side_by_side",
    "total_loss",
    "weights_unchanged",
]
