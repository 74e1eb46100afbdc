"""wmkit.codecs."""
