"""Environments: the embedded ViZDoom worlds, gymnasium by name, and a toy that counts."""

from __future__ import annotations

from wmkit.envs.counting import CountingEnv

__all__ = ["CountingEnv"]
