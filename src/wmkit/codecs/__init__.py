"""Encoders and decoders: observations to embeddings, features back to observations."""

from wmkit.codecs.decoder import Decoder, StateDecoder
from wmkit.codecs.encoder import Encoder
from wmkit.codecs.frames import FrameStack
from wmkit.codecs.images import unit_image
from wmkit.codecs.images_2020 import ImageDecoder2020, ImageEncoder2020
from wmkit.codecs.images_2023 import ImageDecoder, ImageEncoder
from wmkit.codecs.images_2024 import ImageDecoder2024, ImageEncoder2024
from wmkit.codecs.images_batch_norm import BatchNormImageDecoder, BatchNormImageEncoder
from wmkit.codecs.images_unpadded import UnpaddedImageDecoder, UnpaddedImageEncoder

__all__ = [
    "BatchNormImageDecoder",
    "BatchNormImageEncoder",
    "Decoder",
    "Encoder",
    "FrameStack",
    "ImageDecoder",
    "ImageDecoder2020",
    "ImageDecoder2024",
    "ImageEncoder",
    "ImageEncoder2020",
    "ImageEncoder2024",
    "StateDecoder",
    "UnpaddedImageDecoder",
    "UnpaddedImageEncoder",
    "unit_image",
]
