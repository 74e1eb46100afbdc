"""wmkit.heads."""
