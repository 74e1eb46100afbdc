"""wmkit.data."""
