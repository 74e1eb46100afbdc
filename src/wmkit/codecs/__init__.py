"""Encoders and decoders: observations to embeddings, features back to observations."""

from wmkit.codecs.codec import Decoder, Encoder
from wmkit.codecs.convolutional import (
    BatchNormImageDecoder,
    BatchNormImageEncoder,
    ConvolutionalImageDecoder,
    ConvolutionalImageEncoder,
    UnpaddedImageDecoder,
    UnpaddedImageEncoder,
)
from wmkit.codecs.frames import FrameStack, unit_image
from wmkit.codecs.impala import ImpalaImageEncoder
from wmkit.codecs.pooled import MaxPooledImageEncoder, PooledImageDecoder, PooledImageEncoder
from wmkit.codecs.residual import ResidualImageDecoder, ResidualImageEncoder
from wmkit.codecs.vision_transformer import VisionTransformerImageEncoder

__all__ = [
    "BatchNormImageDecoder",
    "BatchNormImageEncoder",
    "ConvolutionalImageDecoder",
    "ConvolutionalImageEncoder",
    "Decoder",
    "Encoder",
    "FrameStack",
    "ImpalaImageEncoder",
    "MaxPooledImageEncoder",
    "PooledImageDecoder",
    "PooledImageEncoder",
    "ResidualImageDecoder",
    "ResidualImageEncoder",
    "UnpaddedImageDecoder",
    "UnpaddedImageEncoder",
    "VisionTransformerImageEncoder",
    "unit_image",
]
