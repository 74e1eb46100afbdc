"""wmkit.backbones."""
