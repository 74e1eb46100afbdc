"""wmkit.envs."""
