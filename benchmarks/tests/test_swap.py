"""The benchmark of backbones measures what its page says."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensordict import TensorDict

import wmkit
from wmkit.dynamics import Latent

BENCHMARKS = Path(__file__).parents[1]
RESULTS = BENCHMARKS.parent / "docs" / "results"
MODULES = ("cells", "corridor", "equal", "recall_model", "report", "speed", "worlds")


@pytest.fixture(scope="module")
def swap():
    """Its files, found beside it as when it is run."""
    modules = {name: importlib.import_module(f"swap.{name}") for name in MODULES}
    return SimpleNamespace(**modules, main=runpy.run_path(str(BENCHMARKS / "backbone_swap.py"))["main"])


def records(lengths: list[int], seed: int = 0) -> TensorDict:
    """Episodes of these lengths as one stream; pixels count them, the last record is paid and ends."""
    count, generator = sum(lengths), torch.Generator().manual_seed(seed)
    is_init = torch.zeros(count, 1, dtype=torch.bool)
    is_init[np.cumsum([0, *lengths[:-1]])] = True
    done = is_init.roll(-1, 0)
    action = torch.eye(3)[torch.randint(3, (count,), generator=generator)].masked_fill(is_init, 0)
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 64, 64).clone()
    flags = {"is_init": is_init, "terminated": done, "done": done}
    return TensorDict({"pixels": pixels, "previous_action": action, "reward": done.float(), **flags}, [count])


# --- equal parameters ----------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", wmkit.available("backbone"))
def test_recallers_have_as_many_parameters(swap, backbone):
    model, counted = swap.equal.recaller(backbone, 17, 8, window=514, target=60_000, seed=0)
    assert counted["parameters"] == sum(p.numel() for p in model.parameters())
    assert counted["parameters"] == pytest.approx(60_000, rel=0.01)


def test_world_models_have_as_many_parameters_as_the_page_gives(swap):
    system, counted = swap.equal.world_model("block_gru", 5, swap.worlds.OVERRIDES, 0)
    assert counted["parameters"] == sum(p.numel() for p in system.world_model.parameters())
    assert counted["parameters"] == pytest.approx(counted["page_parameters"], rel=0.02)
    assert int(counted["overrides"][-1].removeprefix("size.deter=")) % 8 == 0


def test_a_count_that_no_width_gives_is_an_error(swap):
    assert swap.equal.matching_width(lambda w: 2 * w * w + 30 * w + 7, 2 * 90**2 + 30 * 90 + 7) == 90
    with pytest.raises(ValueError, match="no width gives 100 parameters"):
        swap.equal.matching_width(lambda w: 1000 + w, 100)


# --- the corridor --------------------------------------------------------------------------------


def test_a_sequence_is_cue_distraction_query_and_a_pure_function(swap):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    symbols, cues = swap.corridor.sequences(20, 500, seed=3)
    again, other = (swap.corridor.sequences(20, 500, seed=s)[0] for s in (3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(symbols, again) and not torch.equal(symbols, other)
    kinds, k = symbols.argmax(-1), swap.corridor.SYMBOLS
    assert symbols.shape == (500, 22, swap.corridor.INPUTS) and symbols.sum(-1).eq(1).all()
    assert torch.equal(kinds[:, 0], cues) and cues.unique().tolist() == list(range(k))
    assert kinds[:, 1:-1].min() == k and kinds[:, 1:-1].max() == 2 * k - 1
    assert kinds[:, -1].eq(2 * k).all()
    assert cues.bincount(minlength=k).max() < 500 * 2 / k  # none is much likelier: chance is 1 / k


def test_a_cue_is_recalled_inside_a_window_and_unseen_beyond(swap):
    settings = {"lengths": [6], "updates": 60, "rows": 32, "tests": 64, "seed": 0}
    found = swap.corridor.run("gru", **settings, window=None)
    assert found["accuracy"][6] > 0.5 and found["losses"][0] > found["losses"][-1] and found["window"] is None
    symbols, _ = swap.corridor.sequences(6, 4, seed=0)
    changed = symbols.clone()
    changed[:, 0] = symbols[:, 0].roll(1, -1)
    for window, sees in ((8, True), (3, False)):  # two layers of 3 look back four steps
        model, _ = swap.equal.recaller("transformer_xl", 17, 8, window, 60_000, seed=0)
        assert (model(symbols) - model(changed)).abs().max().gt(0) == sees


# --- the corridor through a world model ----------------------------------------------------------


def test_an_episode_is_the_corridor_and_its_answer(swap):
    episodes = swap.recall_model.records(5, 30, seed=3)
    symbols, cues = swap.corridor.sequences(5, 30, seed=3)
    assert episodes.shape == (30, 8)
    assert torch.equal(episodes["symbol"][:, :-1], symbols.argmax(-1))
    assert torch.equal(episodes["symbol"][:, -1], cues)
    assert episodes["is_init"][..., 0].sum(0).tolist() == [30, *[0] * 7]
    assert episodes["done"][..., 0].sum(0).tolist() == [*[0] * 7, 30]
    assert torch.equal(episodes["previous_action"] == 0, episodes["is_init"])
    assert not episodes["reward"].any() and not episodes["terminated"].any()


@pytest.mark.parametrize("backbone", ["gpt", "transformer_xl"])
def test_a_transformer_sees_the_corridor_with_as_many_parameters(swap, backbone):
    """Its window is as long as the episode: the same numbers as with empty places in front."""
    system, counted = swap.recall_model.model(backbone, longest=40, seed=0)
    assert counted["parameters"] == pytest.approx(counted["page_parameters"], rel=0.01)
    batch, found = swap.recall_model.records(5, 4, seed=0), []
    for steps in (43, 8):
        swap.recall_model.look_back(system, steps)
        torch.manual_seed(1)
        found.append(system.scene(batch).observed)
    assert found[1].latent.carry.keys[0].shape[3] == 7
    torch.testing.assert_close(found[0].latent.belief, found[1].latent.belief)
    torch.testing.assert_close(found[0].prior_logits, found[1].prior_logits)


def test_a_model_is_asked_before_it_sees_the_answer(swap):
    """A stand-in whose likeliest state is the cue that it saw first; its sample is the next one."""
    k, contexts = swap.corridor.SYMBOLS, []

    def open_loop(batch, context):
        contexts.append(context)
        cue = torch.nn.functional.one_hot(batch["symbol"][:, :context][:, :1], k).float()
        return {}, Latent(cue.roll(1, -1), cue)

    def decoded(x):
        return {"symbol": SimpleNamespace(logits=torch.cat([x[..., :k], x[..., :1] + 9], -1))}

    mode = lambda logits: (logits, logits.argmax(-1))  # noqa: E731
    model = SimpleNamespace(
        open_loop=open_loop,
        dynamics=SimpleNamespace(prior_logits=lambda belief: belief, latent=SimpleNamespace(mode=mode)),
        # What is no cue counts for nothing, however likely.
        decoder=SimpleNamespace(predict=decoded),
        read=lambda part, latent: latent.state,
    )
    system = SimpleNamespace(world_model=model, fill=dict)
    model.dynamics.backbone = None
    assert swap.recall_model.recalled(system, swap.recall_model.records(6, 20, seed=0), rows=8) == (1.0, 0.0)
    assert contexts == [8] * 3  # cue, distraction, query


def test_a_world_model_learns_to_recall(swap):
    settings = {"lengths": [1], "updates": 200, "rows": 32, "tests": 64, "seed": 0}
    found = swap.recall_model.run("ln_gru", **settings)
    assert found["accuracy"][1] > 0.5 and found["sampled"][1] > 2 * found["chance"]


# --- worlds --------------------------------------------------------------------------------------


def test_windows_stay_within_episodes_and_stand_closer_before_rewards(swap):
    streams = [records([11, 5]), records([9])]
    seen, real, even = swap.worlds.windows(streams, context=4, horizon=3, stride=4, near=2)
    first = seen["pixels"][:, :, 0, 0, 0].tolist()
    assert first[:3] == [
        [0, 1, 2, 3, 4, 5, 6],
        [4, 5, 6, 7, 8, 9, 10],
        [6, 7, 8, 9, 10, 10, 10],
    ]  # 10 is paid
    assert first[3:5] == [[11, 12, 13, 14, 15, 15, 15], [0, 1, 2, 3, 4, 5, 6]]
    assert first[5:] == [[2, 3, 4, 5, 6, 7, 8], [4, 5, 6, 7, 8, 8, 8]]
    assert even.tolist() == [True, True, False, True, True, False, True]
    assert real.sum(1).tolist() == [7, 7, 5, 5, 7, 7, 5] and real[:, :4].all()


def test_batches_are_the_same_for_every_backbone(swap):
    streams = [records([30, 20]), records([50], seed=1)]
    one, two = (list(swap.worlds.batches(streams, 3, 4, 16, seed=5)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one, two, strict=True)) and one[0].shape == (4, 16)


def test_balanced_accuracy_and_area_against_counting(swap):
    generator = torch.Generator().manual_seed(0)
    score, event = torch.rand(60, generator=generator), torch.rand(60, generator=generator) < 0.2
    score = (10 * score).round() / 10  # ties
    found = swap.worlds.recall_of_classes(score, event, 0.45)
    yes, no = score[event].tolist(), score[~event].tolist()
    hits = sum(s > 0.45 for s in yes) / len(yes) / 2 + sum(s <= 0.45 for s in no) / len(no) / 2
    area = sum((y > n) + (y == n) / 2 for y in yes for n in no) / len(yes) / len(no)
    assert found["balanced_accuracy"] == pytest.approx(hits) and found["auc"] == pytest.approx(area)
    none = swap.worlds.recall_of_classes(score, torch.zeros_like(event), 0.45)
    assert none == {"events": 0, "others": 60, "balanced_accuracy": None, "auc": None}


def test_a_perfect_model_makes_no_error_and_a_blind_one_guesses(swap):
    """A stand-in that knows the batch; image, reward and end are then right at every horizon."""
    over = swap.worlds.windows([records([12, 12, 40])], context=4, horizon=8, stride=4)

    def judged(knows: bool) -> dict:
        def open_loop(batch, context):
            feature = torch.cat([batch["reward"], batch["terminated"].float()], -1) * float(knows)
            return {"pixels": batch["pixels"] * float(knows)}, Latent(feature, feature)

        model = SimpleNamespace(
            open_loop=open_loop,
            predict=lambda name, latent: SimpleNamespace(mean=latent.state[..., :1]),
            continuation=lambda latent: 1 - latent.state[..., 1:],
        )
        fill = lambda rows: {**rows, "pixels": rows["pixels"].float() / 255}  # noqa: E731
        system = SimpleNamespace(world_model=model, fill=fill)
        return swap.worlds.evaluate(system, over, 4, {"reward": 0.05, "end": 0.05}, bands=2)

    good, bad = judged(True), judged(False)
    assert len(good["image"]) == 9 and max(good["image"]) == 0 and min(bad["image"]) > 0
    for label in ("reward", "end", "reward 1-4", "end 5-8"):
        assert good[label]["balanced_accuracy"] == good[label]["auc"] == 1 and good[label]["events"] > 0
        assert bad[label]["balanced_accuracy"] == bad[label]["auc"] == 0.5


def test_baselines(swap, tmp_path):
    save(swap, tmp_path / "data.npz", [records([20]), records([20])])
    found = swap.worlds.baselines(tmp_path / "data.npz", context=4, horizon=2)
    assert found["copy last"] == pytest.approx([0, (1 / 255) ** 2, (2 / 255) ** 2], rel=1e-4)
    assert found["records"] == {"learnt": 20, "held out": 20} and found["episodes"]["learnt"] == 1


def test_collected_records_are_kept_as_they_were(swap, tmp_path):
    pytest.importorskip("ale_py")
    for name in ("one", "two"):
        swap.worlds.collect(
            swap.worlds.WORLDS["battle_zone"], 48, tmp_path / f"{name}.npz", streams=2, seed=1
        )
    (learnt,), (held_out,) = swap.worlds.load(tmp_path / "one.npz")
    again = swap.worlds.load(tmp_path / "two.npz")[0][0]
    assert len(learnt) == len(held_out) == 25 and (learnt == again).all()
    assert learnt["is_init"].sum() == 1 and learnt["previous_action"][1:].sum(-1).eq(1).all()


# --- cells and report ----------------------------------------------------------------------------


def save(swap, path: Path, streams: list[TensorDict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {key: torch.cat([x[key] for x in streams]).numpy() for key in swap.worlds.KEYS}
    np.savez_compressed(path, lengths=[len(x) for x in streams], **arrays)


def test_every_part_runs_and_is_drawn(swap, tmp_path):
    parts = swap.cells.PARTS
    args = SimpleNamespace(out=tmp_path, quick=True, updates=2, recall_updates=2, seeds=1, window=4)
    args.backbones, args.recall_model_updates = ["transformer_xl"], 2
    save(swap, tmp_path / "data" / "vizdoom.npz", [records([25] * 2), records([25] * 2)])
    for part in [part for part in parts if part != "battle_zone"]:
        for cell in swap.cells.plan(args, part):
            swap.cells.run_cell(cell, tmp_path)
            path = tmp_path / f"{cell.name}.json"
            assert swap.cells.finished(path, cell.settings)
            assert not swap.cells.finished(path, {**cell.settings, "updates": 3})
    run = json.loads((tmp_path / "vizdoom" / "transformer_xl-s0.json").read_text())
    assert run["parameters"] == pytest.approx(run["page_parameters"], rel=0.02)
    assert len(run["image"]) == 25 and len(run["losses"]) == 2 and run["reward"]["events"] > 0
    run = json.loads((tmp_path / "recall_model" / "transformer_xl-s0.json").read_text())
    assert run["parameters"] == pytest.approx(run["page_parameters"], rel=0.02)
    assert set(run["accuracy"]) == set(run["sampled"]) and len(run["losses"]) == 1
    speed = json.loads((tmp_path / "speed" / "transformer_xl.json").read_text())
    kept = [scan["kept_mib"] for scan in speed["scan"]["lengths"].values()]
    assert 0 < kept[0] < kept[1] and speed["world_model"]["carried_numbers"] > 2 * 2 * 31 * 96
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "backbones.md").write_text("Prose.\n<!-- begin recall -->\nold\n<!-- end recall -->\nMore.\n")
    tables = swap.report.write(tmp_path, docs, parts)
    page = (docs / "backbones.md").read_text()
    assert tables["recall"] in page and "old" not in page and page.startswith("Prose.")
    assert page.endswith("<!-- end recall -->\nMore.\n")
    assert {path.stem for path in docs.glob("*.png")} == {
        "backbones_recall",
        "backbones_images",
        "backbones_scaling",
    }


# --- what a report leaves alone ------------------------------------------------------------------


def save_cells(out: Path, numbers: dict) -> None:
    """Numbers of ``backbones.json`` as the cells they came from."""
    for part, runs in numbers.items():
        world, baselines = part.removesuffix(" baselines"), part.endswith(" baselines")
        (out / world).mkdir(parents=True, exist_ok=True)
        for name, cells in {"baselines": [runs]}.items() if baselines else runs.items():
            for cell in cells:
                seed = "" if part in ("reach", "speed") or baselines else f"-s{cell['settings']['seed']}"
                (out / world / f"{name}{seed}.json").write_text(json.dumps(cell))


@pytest.fixture
def docs(tmp_path):
    """A copy of the committed numbers and page."""
    copy = tmp_path / "docs"
    copy.mkdir()
    for name in ("backbones.json", "backbones.md"):
        shutil.copy(RESULTS / name, copy)
    return copy


def contents(docs: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in docs.iterdir() if path.suffix != ".png"}


def lines_of(page: str, table: str) -> list[str]:
    return page.partition(f"<!-- begin {table} -->\n")[2].partition("<!-- end")[0].splitlines()


def test_a_report_without_cells_stops_and_changes_nothing(swap, docs, tmp_path):
    before = contents(docs)
    (tmp_path / "empty" / "recall").mkdir(parents=True)
    for out in ("wrong", "empty"):
        with pytest.raises(SystemExit, match=r"holds no cells: found no JSON in its folders recall, .*--out"):
            swap.main(["--report", "--out", str(tmp_path / out), "--docs", str(docs)])
    assert contents(docs) == before and not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("parts", "plots"),
    [
        (["recall"], {"recall"}),
        (["reach"], {"recall"}),
        (["vizdoom baselines"], {"images"}),
        (["speed", "short_window"], {"scaling", "recall"}),
    ],
)
def test_a_report_of_some_parts_leaves_the_others_alone(swap, docs, tmp_path, parts, plots):
    before = contents(docs)
    numbers = json.loads(before["backbones.json"])
    save_cells(tmp_path / "out", {part: numbers[part] for part in parts})
    tables = swap.report.write(tmp_path / "out", docs, swap.cells.PARTS)
    after = contents(docs)
    assert after["backbones.json"] == before["backbones.json"]
    assert {path.stem.removeprefix("backbones_") for path in docs.glob("*.png")} == plots
    names = re.findall("<!-- begin (.*) -->", before["backbones.md"])
    assert set(names) > set(tables) and len(names) > 10
    for name in {*names} - {*tables} | {"minutes", "counts"}:
        assert lines_of(after["backbones.md"], name) == lines_of(before["backbones.md"], name)


def test_a_backbone_measured_again_changes_its_own_rows(swap, docs, tmp_path):
    before = contents(docs)
    cell = json.loads(before["backbones.json"])["recall"]["lstm"][0]
    cell = {
        **cell,
        "accuracy": dict.fromkeys(cell["accuracy"], 0.77),
        "minutes": 100.0,
        "parameters": 777_777,
    }
    other = {**cell, "settings": {**cell["settings"], "seed": 3}}
    save_cells(tmp_path / "out", {"recall": {"lstm": [cell], "mine": [other]}})
    swap.report.write(tmp_path / "out", docs, swap.cells.PARTS)
    after = contents(docs)
    was, now = (json.loads(x["backbones.json"]) for x in (before, after))
    assert list(now) == list(was) and list(now["recall"]) == [*was["recall"], "mine"]
    assert now["recall"] == {**was["recall"], "lstm": [cell, *was["recall"]["lstm"][1:]], "mine": [other]}
    assert all(now[part] == was[part] for part in was if part != "recall")
    new = {
        line for table in ("recall", "counts", "minutes") for line in lines_of(after["backbones.md"], table)
    }
    old = {
        line for table in ("recall", "counts", "minutes") for line in lines_of(before["backbones.md"], table)
    }
    assert sorted(line.split()[1] for line in old - new) == ["`lstm`", "`lstm`", "recall"]
    assert sorted(line.split()[1] for line in new - old) == ["`lstm`"] * 2 + ["`mine`"] * 2 + ["recall"]
    assert f"| recall | {sum(map(len, was['recall'].values())) + 1} |" in after["backbones.md"]


def test_several_seeds_show_their_mean_and_their_spread(swap):
    runs = [{"accuracy": {"32": 0.1, "64": 1.0}}, {"accuracy": {"32": 0.6, "64": 1.0}}]
    for found, wanted in ((runs, ["0.35 [0.10–0.60]", "1.00"]), (runs[:1], ["0.10", "1.00"])):
        assert swap.report.over_seeds(found, lambda r: list(r["accuracy"].values())) == wanted


def test_rows_with_other_settings_are_not_mixed(swap, docs, tmp_path):
    before = contents(docs)
    runs = json.loads(before["backbones.json"])["recall"]
    for cells in runs.values():
        for cell in cells:
            cell["settings"]["updates"] = 400
    save_cells(tmp_path / "one", {"recall": {"gru": runs["gru"]}})
    with pytest.raises(SystemExit, match=r"part recall would mix settings: found updates=600 in .* 400 in a"):
        swap.report.write(tmp_path / "one", docs, swap.cells.PARTS)
    assert contents(docs) == before
    save_cells(tmp_path / "all", {"recall": runs})
    swap.report.write(tmp_path / "all", docs, swap.cells.PARTS)
    assert json.loads((docs / "backbones.json").read_text())["recall"] == runs


def test_an_unknown_backbone_is_refused_at_once(swap, tmp_path, capsys):
    with pytest.raises(SystemExit):
        swap.main(["--out", str(tmp_path / "new"), "--backbones", "lstmm"])
    assert "argument --backbones: invalid choice: 'lstmm' (choose from" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
