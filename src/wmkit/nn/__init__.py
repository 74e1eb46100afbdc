"""wmkit.nn."""
