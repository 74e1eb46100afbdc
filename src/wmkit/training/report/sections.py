"""One function per section of the report: run files in, HTML out, an empty string without data."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from wmkit.envs.crafter_env import crafter_score
from wmkit.training.protocol import EvaluationProtocol
from wmkit.training.report import imagined
from wmkit.training.report.charts import Series, chart
from wmkit.training.report.evidence import read_evidence
from wmkit.training.report.pictures import heat, image, outline_mask, overlay
from wmkit.training.run import RunDirectory

Lines = list[dict[str, Any]]


def cards(run: RunDirectory) -> str:
    """Headline numbers."""
    metrics, episodes = list(run.metrics()), list(run.episodes())
    scored = ("eval/return", "eval/episodes")
    final = next((m for m in reversed(metrics) if all(m.get(name) is not None for name in scored)), None)
    trained: dict[str, Any] = next((m for m in reversed(metrics) if m["stage"] == "train"), {})
    entries: list[tuple[str, str]] = []
    if final is not None:
        over = f"{final['eval/episodes']:.0f} evaluation episodes"
        if final.get("eval/success_rate") is not None:
            entries.append((f"{100 * final['eval/success_rate']:.0f} %", f"success, {over}"))
            over = "in evaluation"
        gained = final["eval/return"]
        entries.append(("not finite" if gained is None else f"{gained:.2f}", f"return, {over}"))
        if final.get("eval/crafter_score") is not None:
            entries.append((f"{final['eval/crafter_score']:.1f} %", "Crafter score, in evaluation"))
    if trained.get("success_rate") is not None:
        entries.append((f"{100 * trained['success_rate']:.0f} %", "success, last training episodes"))
    elif trained.get("return") is not None:
        entries.append((f"{trained['return']:.2f}", "return, last training episodes"))
    trained_on = [e for e in episodes if e["stage"] in ("prefill", "train")]
    unlocked = [e["achievements"] for e in trained_on if "achievements" in e]
    if unlocked:
        entries.append((f"{crafter_score(unlocked):.1f} %", "Crafter score, all training episodes"))
    steps = max((m["step"] for m in metrics if m["stage"] != "affordance"), default=0)
    entries.append((f"{steps:,}", run.unit))
    entries += [(f"{frames:,}", name) for name, frames in run.frames(steps).items()]
    entries.append((f"{len(trained_on):,}", "training episodes"))
    if trained.get("updates") is not None:
        entries.append((f"{trained['updates']:,.0f}", "updates"))
    if metrics and "wall" in metrics[-1]:
        entries.append((f"{metrics[-1]['wall'] / 60:.1f} min", "wall clock"))
    return "".join(
        f'<div class="card"><b>{value}</b><span>{escape(name)}</span></div>' for value, name in entries
    )


def affordance(run: RunDirectory) -> str:
    """Maps over frames beside the simulator's true object mask."""
    data = read_evidence(run, "affordance")
    if data is None:
        return ""
    columns = ["frame", "affordance map"]
    if "labels" in data:
        columns.insert(1, "virtual exploration")
    if "masks" in data:
        columns.append("true object mask")
    rows = []
    for index, frame in enumerate(data["frames"]):
        cells = [image(frame, photo=True)]
        if "labels" in data:
            cells.append(image(overlay(frame, data["labels"][index]), photo=True))
        cells.append(image(overlay(frame, data["maps"][index]), photo=True))
        if "masks" in data:
            cells.append(image(outline_mask(frame, data["masks"][index]), photo=True))
        rows.append(f'<div class="row">{"".join(cells)}</div>')
    head = "".join(f"<div>{name}</div>" for name in columns)
    scale = image(
        np.repeat(heat(np.linspace(0, 1, 160)[None]), 8, 0),
        style="width:160px;border-radius:4px;vertical-align:middle",
    )
    inside = f'<div class="head">{head}</div>{"".join(rows)}'
    body = f'<div class="maps" style="--columns:{len(columns)}">{inside}</div>'
    note = (
        f"Where the goal can be approached, from 0 {scale} to 1, beside the pixels that really are the goal."
    )
    numbers = next(iter(run.metrics("affordance")), {})
    known = (
        ("agreement_correlation", "correlation with virtual exploration"),
        ("agreement_iou", "overlap (IoU) with virtual exploration"),
        ("truth_iou", "overlap (IoU) with the true mask"),
        ("truth_window_hit_rate", "zoom window touches the goal"),
    )
    found = [(text, numbers.get(f"affordance/{name}")) for name, text in known]
    note += " On frames that it never learned from: " if any(value is not None for _, value in found) else ""
    note += ", ".join(f"{text} {value:.2f}" for text, value in found if value is not None)
    return section("Affordance maps", note, body)


def imagination(run: RunDirectory) -> str:
    """What was imagined beside what really happened."""
    data = read_evidence(run, "imagination")
    if data is None:
        return ""
    return section("Imagined and real", imagined.explanation(data), imagined.draw(data))


def curves(run: RunDirectory) -> str:
    """Success rate, return and episode length over environment steps."""
    train, played = list(run.metrics("train")), [m for m in run.metrics() if "eval/return" in m]
    charts = []
    for name, title, percent in (
        ("success_rate", "Success rate", True),
        ("return", "Return", False),
        ("length", "Episode length", False),
    ):
        both = [_series("training", train, name), _series("evaluation", played, f"eval/{name}")]
        both[1].dots = len(both[1].points) < 3
        limits = (0.0, 1.0) if percent else None
        charts.append(chart(title, both, x_label=run.unit, y_range=limits, percent=percent))
    rules = next((m["protocol"] for m in reversed(played) if "protocol" in m), None)
    note = f"Evaluation: {escape(str(EvaluationProtocol.read(rules)))}." if rules else ""
    return section("Learning", note, _grid(charts))


def jumps(run: RunDirectory) -> str:
    """How often jumps fire, and predicted against real spans."""
    train, charts = list(run.metrics("train")), []
    rates = [_series("labelled in the world", train, "collect/jump_rate")]
    rates.append(_series("zoomed pairs", train, "collect/zoom_rate"))
    rates.append(_series("in imagination", train, "jump_rate"))
    charts.append(chart("How often jumps fire (share of steps)", rates, percent=True))
    pairs = [
        _series(name, train, f"pairs/{name}") for name in ("reached", "timed_out", "abandoned", "waiting")
    ]
    charts.append(chart("What became of the pairs", pairs))
    spans = [
        _series("of reached pairs", train, "pairs/span_mean"),
        _series("in imagination", train, "jump_span"),
    ]
    charts.append(chart("Mean Δ", spans))
    data = read_evidence(run, "spans")
    if data is not None:
        clouds = [
            Series(title, data[f"{key}_real"].tolist(), data[f"{key}_predicted"].tolist(), dots=True)
            for key, title in (
                ("goal", "to the goal, in evaluation"),
                ("pair", "to the jump's target, in replay"),
            )
            if f"{key}_real" in data
        ]
        charts.append(
            chart(
                "Steps: predicted Δ against what it really took", clouds, x_label="real steps", diagonal=True
            )
        )
    grid = _grid(charts)
    return section("Jumps", "", grid) if "<svg" in grid else ""


def losses(run: RunDirectory) -> str:
    """Every loss term as a small chart."""
    train = list(run.metrics("train"))
    names = [name for name in _names(train) if "loss" in name][:24]
    charts = [
        chart(_plain(name), [_series(name, train, name)], x_label=run.unit, size=(300, 180)) for name in names
    ]
    grid = _grid(charts, "charts small")
    return section("Losses", "", grid) if "<svg" in grid else ""


def section(title: str, note: str, body: str) -> str:
    """The frame around one section."""
    return f"<section><h2>{escape(title)}</h2><p>{note}</p>{body}</section>"


def _grid(charts: Sequence[str], kind: str = "charts") -> str:
    return f'<div class="{kind}">{"".join(charts)}</div>'


def _series(title: str, lines: Lines, name: str) -> Series:
    found = {line["step"]: line[name] for line in lines if line.get(name) is not None}  # the last of a step
    return Series(title, list(found), list(found.values()))


def _names(lines: Lines) -> list[str]:
    return sorted({name for line in lines for name in line} - {"step", "stage", "wall"})


def _plain(name: str) -> str:
    return name.removeprefix("loss/").removeprefix("loss_").replace("_", " ").replace("/", ": ")
