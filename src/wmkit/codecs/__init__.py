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
from wmkit.codecs.pooled import MaxPooledImageEncoder, PooledImageDecoder, PooledImageEncoder
from wmkit.codecs.residual import ResidualImageDecoder, ResidualImageEncoder

__all__ = [
    "BatchNormImageDecoder",
    "BatchNormImageEncoder",
    "ConvolutionalImageDecoder",
    "ConvolutionalImageEncoder",
    "Decoder",
    "Encoder",
    "FrameStack",
    "MaxPooledImageEncoder",
    "PooledImageDecoder",
    "PooledImageEncoder",
    "ResidualImageDecoder",
    "ResidualImageEncoder",
    "UnpaddedImageDecoder",
    "UnpaddedImageEncoder",
    "unit_image",
]
