"""Tables and plots of the cells that are there.

A page keeps its prose: what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` is replaced by
the table of that name. It keeps its numbers, too: what was not measured again stays as its JSON has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from swap.worlds import WORLDS

RESULTS = Path(__file__).parents[2] / "docs" / "results"
STYLES = {  # recurrent cells, transformers, state spaces
    "block_gru": ("#08519c", "-"),
    "gru": ("#3182bd", "-"),
    "ln_gru": ("#31a354", "-"),
    "ln_gru_bias": ("#a1d99b", "-"),
    "lstm": ("#6baed6", "-"),
    "gpt": ("#e6550d", "--"),
    "transformer_xl": ("#a63603", "--"),
    "s5": ("#756bb1", ":"),
}
Cells = dict[str, list[dict]]  # by backbone, one per seed
Numbers = dict[str, Any]  # cells by part, and the baselines of worlds


def cells(folder: Path) -> Cells:
    """What lies in the folder of a part, without its baselines."""
    found: Cells = {}
    for path in sorted(folder.glob("*.json")):
        if path.stem != "baselines":
            found.setdefault(re.sub(r"-s\d+$", "", path.stem), []).append(json.loads(path.read_text()))
    return ordered(found)


def ordered(found: Cells) -> Cells:
    """Backbones as tables and plots show them."""
    return dict(sorted(found.items(), key=lambda item: [*STYLES, item[0]].index(item[0])))


def measured(out: Path, parts: Iterable[str]) -> Numbers:
    """Every cell of a run; an error if there is none."""
    parts = list(parts)
    found: Numbers = {part: runs for part in parts if (runs := cells(out / part))}
    for world in WORLDS:
        path = out / world / "baselines.json"
        if world in parts and path.is_file():
            found[f"{world} baselines"] = json.loads(path.read_text())
    if not found:
        raise SystemExit(
            f"{out} holds no cells: found no JSON in its folders {', '.join(parts)}, wanted a file at least; "
            "correct --out, or leave out --report to measure"
        )
    return found


def merged(before: Numbers, found: Numbers, parts: Iterable[str]) -> Numbers:
    """What was found, and of what was there before all that was not measured again."""
    numbers = before | found
    for part in set(before) & set(found) & set(parts):
        runs: Cells = {}
        for name in {**before[part], **found[part]}:
            new = found[part].get(name, [])
            seeds = [seed_of(run) for run in new]
            old = [run for run in before[part].get(name, []) if seed_of(run) not in seeds]
            check_alike(part, old, next(iter(found[part].values())))
            runs[name] = sorted([*old, *new], key=seed_of)
        numbers[part] = ordered(runs)
    order = [*parts, *(f"{world} baselines" for world in WORLDS), *numbers]
    return dict(sorted(numbers.items(), key=lambda item: order.index(item[0])))


def seed_of(run: dict) -> int:
    return run["settings"].get("seed", 0)


def check_alike(part: str, old: list[dict], new: list[dict]) -> None:
    """An error where rows of one table would have been made with different settings."""
    for was, now in product((run["settings"] for run in old), (run["settings"] for run in new)):
        for key in sorted(set(was) & set(now) - {"seed"}):
            if was[key] != now[key]:
                raise SystemExit(
                    f"part {part} would mix settings: found {key}={was[key]} in backbones.json and "
                    f"{now[key]} in a cell, wanted the same in all rows; measure all backbones and seeds of "
                    "the part again, or give --docs another folder"
                )


def mean(runs: Iterable[dict], get: Callable[[dict], Any]) -> Any:
    """Over seeds, of numbers or lists; None where there is none."""
    values = [value for value in map(get, runs) if value is not None]
    return np.mean(np.array(values, dtype=float), 0) if values else None


def spread(runs: Iterable[dict], get: Callable[[dict], Any]) -> tuple[Any, Any]:
    """The least and the most over seeds, of lists."""
    values = np.array([get(run) for run in runs], dtype=float)
    return values.min(0), values.max(0)


def over_seeds(runs: list[dict], get: Callable[[dict], Any], form: str = ".2f") -> list[str]:
    """Means of lists; of several seeds with the least and the most, where these are told apart."""
    cells = []
    for value, *ends in zip(mean(runs, get), *spread(runs, get), strict=True):
        low, high = (format(end, form) for end in ends)
        cells.append(format(value, form) + (f" [{low}–{high}]" if low != high else ""))
    return cells


def table(head: list[str], rows: list[list[object]]) -> str:
    """Markdown; names to the left, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def shown(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


def counts(learnt: dict[str, tuple[Cells, str]]) -> str:
    """Parameters of what learnt: by heading, its cells and where they say what was chosen."""
    rows = []
    for name in {name: None for found, _ in learnt.values() for name in found}:
        row: list[object] = [f"`{name}`"]
        for found, chosen in learnt.values():
            run = found.get(name, [{}])[0]
            kept = run.get(chosen, "–")
            words = " ".join(f"`{word}`" for word in kept[1:]) if isinstance(kept, list) else kept
            row += [words, *(shown(run.get(key), ",") for key in ("backbone_parameters", "parameters"))]
        rows.append(row)
    return table(["backbone", *(word for key in learnt for word in (key, "backbone", "whole"))], rows)


def recall_table(recall: Cells, short: Cells) -> str:
    """Accuracy against L."""
    rows: list[list[object]] = []
    for found in (recall, short):
        for name, runs in found.items():
            windowed = f", window {runs[0]['window']}" if found is short else ""
            rows.append([f"`{name}`{windowed}", *over_seeds(runs, lambda r: list(r["accuracy"].values()))])
    lengths = next(iter(recall.values()))[0]["accuracy"]
    return table(["accuracy at L =", *lengths], rows)


def recall_model_table(model: Cells) -> str:
    """Accuracy of the likeliest imagined state against L, in brackets that of a sample."""
    rows: list[list[object]] = []
    for name, runs in model.items():
        best = over_seeds(runs, lambda r: list(r["accuracy"].values()))
        sample = mean(runs, lambda r: list(r["sampled"].values()))
        rows.append([f"`{name}`", *(f"{x} ({y:.2f})" for x, y in zip(best, sample, strict=True))])
    lengths = next(iter(model.values()))[0]["accuracy"]
    return table(["accuracy at L =", *lengths], rows)


def image_table(world: Cells, baseline: dict) -> str:
    """Squared error of images at some horizons, in thousandths."""
    last = len(baseline["copy last"]) - 1
    steps = sorted({0, 1, min(4, last), last // 3, 2 * last // 3, last})

    def row(name: str, runs: list[dict]) -> list[object]:
        return [name, *over_seeds(runs, lambda r: [1e3 * r["image"][step] for step in steps])]

    rows = [row(name, [{"image": baseline[name]}]) for name in ("copy last", "mean frame")]
    rows += [row(f"`{name}`", runs) for name, runs in world.items()]
    return table(["error x 1,000 after", *map(str, steps)], rows)


def event_table(world: Cells) -> str:
    """Balanced accuracy and area under the curve of rewards and ends."""
    first = next(iter(world.values()))[0]
    labels = [key for key in first if key.split()[0] in ("reward", "end")]
    labels = [key for key in labels if first[key]["events"] >= (10 if " " in key else 1)]  # bands, the whole
    if not labels:
        return "Neither rewards nor ends in what was held out."
    rows: list[list[object]] = [["events", *(first[key]["events"] for key in labels)]]
    for name, runs in world.items():
        pairs = [
            (mean(runs, lambda r, k=k: r[k]["balanced_accuracy"]), mean(runs, lambda r, k=k: r[k]["auc"]))
            for k in labels
        ]
        rows.append([f"`{name}`", *(f"{shown(hits)} ({shown(area)})" for hits, area in pairs)])
    return table(["balanced accuracy (area)", *labels], rows)


def speed_table(speed: Cells) -> str:
    """Times by processor, memory and carries of world models."""
    rows = []
    for name, (run,) in speed.items():
        model = run["world_model"]
        rows.append(
            [
                f"`{name}`",
                f"{model['update']['cpu_ms']:.0f}",
                f"{model['imagined_step']['cpu_ms']:.2f}",
                f"{model['update_kept_mib']:.0f}",
                f"{model['carried_numbers']:,}",
            ]
        )
    return table(["backbone", "update, ms", "imagined step, ms", "kept for backward, MiB", "carried"], rows)


def scan_table(speed: Cells, key: str, form: str) -> str:
    """One number of a scan against T."""
    lengths = next(iter(speed.values()))[0]["scan"]["lengths"]
    rows = [
        [f"`{name}`", *(format(run["scan"]["lengths"][t][key], form) for t in lengths)]
        for name, (run,) in speed.items()
    ]
    return table(["T =", *lengths], rows)


def minutes(numbers: Numbers, parts: Iterable[str]) -> str:
    """How long the cells of each part took, one after another."""
    rows = []
    for part in parts:
        found = [run for runs in numbers.get(part, {}).values() for run in runs]
        found += [numbers[key] for key in (f"{part} baselines",) if key in numbers]
        if found:
            cpu = sum(run.get("cpu_seconds", 0) for run in found) / 60
            rows.append([part, len(found), f"{sum(r['minutes'] for r in found):.0f}", f"{cpu:.0f}"])
    return table(["part", "cells", "minutes", "processor minutes of learning"], rows)


# -- plots ---------------------------------------------------------------------------------------------


def line(axis: Any, name: str, x: Any, runs: list[dict], get: Callable[[dict], list], **style: Any) -> None:
    """The mean of a backbone's seeds as a thin line in its colour, from the least to the most as a shade."""
    colour, dash = STYLES.get(name, ("black", "-."))
    axis.plot(x, mean(runs, get), **{"color": colour, "ls": dash, "lw": 1.2, "label": name, **style})
    if len(runs) > 1:
        axis.fill_between(x, *spread(runs, get), color=colour, alpha=0.1, lw=0)


def figure(panels: int) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    made, axes = plt.subplots(1, panels, figsize=(1.6 + 4.2 * panels, 3.9), dpi=130, squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return made, axes[0]


def save(made: Any, axis: Any, path: Path) -> None:
    handles, labels = axis.get_legend_handles_labels()
    legend = made.legend(handles, labels, fontsize=8, frameon=False, loc="center right")
    made.canvas.draw()
    taken = legend.get_window_extent().width / made.bbox.width
    made.tight_layout(rect=(0, 0, 1 - taken, 1))
    made.savefig(path)


def plot_recall(recall: Cells, short: Cells, model: Cells, reach: Cells, path: Path) -> None:
    """Accuracy against L, of backbones and of world models, and beside it how far gradients reach."""
    made, axes = figure(1 + bool(model) + bool(reach))
    accuracies(axes[0], recall, short)
    axes[0].set_ylabel("recall accuracy of the backbone")
    if model:
        accuracies(axes[1], model, {})
        axes[1].set_ylabel("recall accuracy of the world model")
    if reach:
        far = axes[-1]
        for name, (run,) in reach.items():
            line(far, name, run["distance"], [run], lambda r: [max(x, 1e-30) for x in r["gradient"]])
        far.set_yscale("log")
        far.set(ylim=(1e-14, 1e5), xlabel="steps before the query", ylabel="gradient, against the query's")
    save(made, axes[0], path)


def accuracies(axis: Any, found: Cells, short: Cells) -> None:
    """A panel of accuracy against L; thin where the window is short."""
    # Side by side where they would lie on one another.
    shift = {name: 1 + 0.03 * (i - len(found) / 2) for i, name in enumerate(found)}
    for cells, style in ((found, {"marker": "o", "ms": 4}), (short, {"lw": 0.8, "marker": "x", "ms": 5})):
        for name, runs in cells.items():
            lengths = [int(key) for key in runs[0]["accuracy"]]
            label = name if cells is found else f"{name}, window {runs[0]['window']}"
            x = np.array(lengths) * shift.get(name, 1)
            line(axis, name, x, runs, lambda r: list(r["accuracy"].values()), label=label, **style)
    chance = next(iter(found.values()))[0]["chance"]
    axis.axhline(chance, color="black", lw=0.8, ls=(0, (1, 2)), label="chance")
    axis.set_xscale("log", base=2)
    axis.set(ylim=(0, 1.05), xlabel="steps of distraction L")
    axis.set_xticks(lengths, lengths)


def plot_images(data: dict[str, tuple[Cells, dict]], path: Path) -> None:
    """Error of images against horizon, a panel per world."""
    made, axes = figure(len(data))
    for axis, (world, (found, baseline)) in zip(axes, data.items(), strict=True):
        for name, colour in (("copy last", "#555555"), ("mean frame", "#aaaaaa")):
            axis.plot(1e3 * np.array(baseline[name]), color=colour, lw=1.6, label=name)
        for name, runs in found.items():
            steps = np.arange(len(runs[0]["image"]))
            line(axis, name, steps, runs, lambda r: [1e3 * error for error in r["image"]])
        axis.set(title=world, xlabel="steps ahead (0: last observed)", ylim=(0, None))
    axes[0].set_ylabel("squared error per value x 1,000")
    save(made, axis, path)


def plot_scaling(speed: Cells, path: Path) -> None:
    """Time and memory of a scan against T."""
    made, axes = figure(2)
    for name, (run,) in speed.items():
        scans = run["scan"]["lengths"]
        lengths = [int(t) for t in scans]
        for axis, key in zip(axes, ("cpu_ms", "kept_mib"), strict=True):
            line(axis, name, lengths, [scans], lambda s, k=key: [x[k] for x in s.values()], marker="o", ms=3)
    for axis, label in zip(axes, ("forward and backward, ms", "kept for backward, MiB"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set(xlabel="steps T", ylabel=label)
        axis.set_xticks(lengths, lengths)
    save(made, axis, path)


# -- the page ------------------------------------------------------------------------------------------


def write(out: Path, docs: Path, parts: Iterable[str]) -> dict[str, str]:
    """Draw what is there into ``docs``, and put the tables into its page.

    Cells are added to the numbers of ``backbones.json`` or replace theirs, part by part, backbone by backbone
    and seed by seed. Only tables and plots of parts that have cells are drawn, of all numbers they have.

    Args:
        out: where the cells lie.
        docs: for plots, all numbers (``backbones.json``) and ``backbones.md``, made if there is none.
        parts: of the cells.

    Returns:
        The tables by name that were drawn.

    Raises:
        SystemExit: there are no cells, or rows of a table would have been made with different settings.
    """
    parts, path, page = tuple(parts), docs / "backbones.json", docs / "backbones.md"
    found = rounded(measured(out, parts))  # as they are kept, so that a table drawn again is the same
    numbers = merged(json.loads(path.read_text()) if path.is_file() else {}, found, parts)
    new = {key.removesuffix(" baselines") for key in found}
    tables = tables_of(numbers, new, parts)
    docs.mkdir(parents=True, exist_ok=True)
    plot(numbers, new, docs)
    path.write_text(json.dumps(numbers, separators=(",", ":")) + "\n")
    if not page.is_file():
        marks = (f"## {name}\n\n<!-- begin {name} -->\n<!-- end {name} -->\n" for name in tables)
        page.write_text("# Backbones\n\n" + "\n".join(marks))
    page.write_text(filled(page.read_text(), tables))
    return tables


def tables_of(numbers: Numbers, new: set[str], parts: Iterable[str]) -> dict[str, str]:
    """The tables that the parts ``new`` are shown in."""
    recall, short, speed, model = (
        numbers.get(part, {}) for part in ("recall", "short_window", "speed", "recall_model")
    )
    tables = {}
    if model and "recall_model" in new:
        tables["recall model"] = recall_model_table(model)
        tables["recall model counts"] = counts({"world model": (model, "overrides")})
    if recall and new & {"recall", "short_window"}:
        tables["recall"] = recall_table(recall, short)
    for world, (found, baseline) in drawn(numbers).items():
        if world in new:
            tables[f"{world} images"] = image_table(found, baseline)
            tables[f"{world} events"] = event_table(found)
    if speed and "speed" in new:
        tables["speed"] = speed_table(speed)
        tables["scan time"] = scan_table(speed, "cpu_ms", ".0f")
        tables["scan memory"] = scan_table(speed, "kept_mib", ".1f")
    if new & {"recall", "speed", *WORLDS}:
        timed = {name: [run["world_model"]] for name, (run,) in speed.items()}
        world = timed
        for part in reversed(WORLDS):  # the first one's cells come before the others'
            world = world | numbers.get(part, {})
        world = ordered(world)
        tables["counts"] = counts({"world model": (world, "overrides"), "corridor: width": (recall, "width")})
    tables["minutes"] = minutes(numbers, parts)
    return tables


def drawn(numbers: Numbers) -> dict[str, tuple[Cells, dict]]:
    """Worlds that have cells and baselines."""
    found = {world: (numbers.get(world), numbers.get(f"{world} baselines")) for world in WORLDS}
    return {world: both for world, both in found.items() if all(both)}


def plot(numbers: Numbers, new: set[str], docs: Path) -> None:
    """The plots that the parts ``new`` are shown in."""
    lines = ("recall", "short_window", "recall_model", "reach")
    if numbers.get("recall") and new.intersection(lines):
        plot_recall(*(numbers.get(part, {}) for part in lines), docs / "backbones_recall.png")
    worlds = drawn(numbers)
    if new.intersection(worlds):
        plot_images(worlds, docs / "backbones_images.png")
    if numbers.get("speed") and "speed" in new:
        plot_scaling(numbers["speed"], docs / "backbones_scaling.png")


def rounded(value: Any) -> Any:
    """All numbers of JSON to four digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def filled(page: str, tables: dict[str, str]) -> str:
    """The page with tables between their marks."""
    for name, text in tables.items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        page = re.sub(pattern, lambda m, t=text: f"{m[1]}{t}\n{m[2]}", page, flags=re.DOTALL)
    return page
