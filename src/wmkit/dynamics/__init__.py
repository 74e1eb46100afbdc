"""wmkit.dynamics."""
