"""Encoders and decoders: observations to embeddings, features back to observations."""

from wmkit.codecs.decoder import Decoder, ImageDecoder
from wmkit.codecs.encoder import Encoder, ImageEncoder, unit_image

__all__ = ["Decoder", "Encoder", "ImageDecoder", "ImageEncoder", "unit_image"]
