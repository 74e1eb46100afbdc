"""wmkit.systems."""
