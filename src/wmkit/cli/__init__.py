"""wmkit.cli."""
