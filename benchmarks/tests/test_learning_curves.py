"""Learning curves: what is drawn beside ours."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from wmkit.systems import compose


def test_published_curves_are_laid_beside_ours_by_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T25: they are of 18 million parameters, repeat 2 and other updates: never by updates, never unnamed."""
    axes = pytest.importorskip("matplotlib.axes")
    learning = importlib.import_module("learning")
    experiments = {name: one for name, one in learning.GROUPS["dreamer_v3"].items() if one.published}
    kept, lines = {}, []
    for name, one in experiments.items():
        config = compose(one.system, list(one.overrides))
        assert config.env.options.action_repeat == 2, name
        settings = {"training.steps": 20_000}
        seeds = {"0": {"curve": [0.0] * learning.POINTS}}
        kept[name] = {"frames_a_step": 2, "random": 0.0, "settings": settings, "seeds": seeds}
    plot = axes.Axes.plot

    def seen(self: Any, x: Any, y: Any, *style: Any, **options: Any) -> Any:
        lines.append((max(x, default=0), options.get("label", "")))
        return plot(self, x, y, *style, **options)

    monkeypatch.setattr(axes.Axes, "plot", seen)
    learning.draw(experiments, kept, tmp_path / "curves.png")
    published = [line for line in lines if "published" in line[1]]
    assert [max(x for x, label in lines if "seed)" in label)] == [40_000]
    assert len(published) == len(experiments) == 2
    assert all(x == 25_000 and "2023 (18M" in label for x, label in published)  # within the frames of ours
    page = compose("dreamer_v3", ["preset=dmc_proprio"])  # today's: of other size, repeat and ratio
    assert (page.size.deter, page.env.options.action_repeat, page.training.train_ratio) == (512, 1, 1024)
