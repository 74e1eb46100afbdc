"""wmkit.objectives."""
