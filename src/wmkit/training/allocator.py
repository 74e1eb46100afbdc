"""Moved to :mod:`wmkit.fast`."""

from wmkit.fast import keep_freed_memory

__all__ = ["keep_freed_memory"]
