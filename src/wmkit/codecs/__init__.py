"""Encoders and decoders: observations to embeddings, features back to observations."""

from wmkit.codecs.decoder import Decoder
from wmkit.codecs.encoder import Encoder
from wmkit.codecs.images import unit_image
from wmkit.codecs.images_2020 import ImageDecoder2020, ImageEncoder2020
from wmkit.codecs.images_2023 import ImageDecoder, ImageEncoder
from wmkit.codecs.images_2024 import ImageDecoder2024, ImageEncoder2024

__all__ = [
    "Decoder",
    "Encoder",
    "ImageDecoder",
    "ImageDecoder2020",
    "ImageDecoder2024",
    "ImageEncoder",
    "ImageEncoder2020",
    "ImageEncoder2024",
    "unit_image",
]
