"""wmkit.affordance."""
