"""Encoders and decoders: observations to embeddings, features back to observations."""

from wmkit.codecs.convolutional import (
    BatchNormImageDecoder,
    BatchNormImageEncoder,
    ConvolutionalImageDecoder,
    ConvolutionalImageEncoder,
    UnpaddedImageDecoder,
    UnpaddedImageEncoder,
)
from wmkit.codecs.decoder import Decoder
from wmkit.codecs.encoder import Encoder
from wmkit.codecs.frames import FrameStack
from wmkit.codecs.images import unit_image
from wmkit.codecs.pooled import PooledImageDecoder, PooledImageEncoder

__all__ = [
    "BatchNormImageDecoder",
    "BatchNormImageEncoder",
    "ConvolutionalImageDecoder",
    "ConvolutionalImageEncoder",
    "Decoder",
    "Encoder",
    "FrameStack",
    "PooledImageDecoder",
    "PooledImageEncoder",
    "UnpaddedImageDecoder",
    "UnpaddedImageEncoder",
    "unit_image",
]
