"""Moved to :mod:`wmkit.fast.filter_loop`."""

from wmkit.fast.filter_loop import applies, run

__all__ = ["applies", "run"]
