"""wmkit.training."""
