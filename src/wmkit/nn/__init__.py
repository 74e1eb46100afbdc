"""Layers and predictions without transport: importable without TorchRL or TensorDict."""

from wmkit.nn.block_linear import BlockLinear, side_by_side
from wmkit.nn.conv import (
    ConvStage,
    DoublingConv,
    Down,
    Fill,
    HalvingConv,
    UnpaddedConv,
    UnpaddedTransposedConv,
    UpsamplingConv,
    UpsamplingStage,
    patches,
)
from wmkit.nn.deferred import LoopWeight, loop_weights
from wmkit.nn.dense import MLP, DenseNormAct, Dropout, Linear, Perceptron
from wmkit.nn.distributions import (
    Bernoulli,
    BoundedNormal,
    Categorical,
    CategoricalLatent,
    GaussianLatent,
    LastLayer,
    OneHotCategorical,
    SquaredError,
    SymexpTwoHot,
    SymlogSquaredError,
    SymlogTwoHot,
    TanhNormal,
    TruncatedNormal,
    UnitNormal,
    total_loss,
)
from wmkit.nn.features import Feature, FeaturePair, Products, rows_are_free
from wmkit.nn.first_layers import FirstLayers
from wmkit.nn.init import init_hidden, init_output
from wmkit.nn.kept import kept, weights_unchanged
from wmkit.nn.norms import ChannelNorm, ChannelRMSNorm, RMSNorm
from wmkit.nn.style import STYLE_2023, STYLE_2024, Activation, LayerStyle, channel_norm

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
    "Down",
    "Dropout",
    "Feature",
    "FeaturePair",
    "Fill",
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
