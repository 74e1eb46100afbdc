"""``python -m wmkit``: the same as the ``wmkit`` command."""

from __future__ import annotations

from wmkit.cli import main

if __name__ == "__main__":
    main()
