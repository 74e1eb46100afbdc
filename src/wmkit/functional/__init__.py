"""wmkit.functional."""
