"""The report: every section with data, none without, and nothing that needs a network."""

from __future__ import annotations

import html
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from support.toy import ToySystem, toy_config, toy_env, toy_parts
from wmkit.cli.app import _print_summary
from wmkit.training.evaluate import Evaluation
from wmkit.training.parts import Parts, make_memory
from wmkit.training.report import drawn, gather_evidence, learned, write_report
from wmkit.training.report.charts import Series, chart
from wmkit.training.report.pictures import channels_last, heat, limits_of, overlay, tiled
from wmkit.training.report.verdict import _of_means, _of_rates
from wmkit.training.run import RunDirectory
from wmkit.training.trainer import train

STEPS = 40


class Maps:
    """Maps that are the mask, softened."""

    def predict(self, views):
        return views["goal_mask"][:, 0].float() * 0.9 + 0.05


class Dreams:
    """Repeats the last real frame; would jump at every seventh step, over the steps that are left."""

    def open_loop(self, batch, context):
        pixels = batch["pixels"].float() / 255
        pixels[:, context:] = pixels[:, context - 1 : context]
        shape = batch.batch_size
        left = torch.arange(shape[1], 0, -1).float().expand(shape)
        return {
            "pixels": pixels,
            "jump": (torch.arange(shape[1]) % 7 == 0).float().expand(shape),
            "jump_steps": left,
        }


def trajectory():
    flag = torch.zeros(STEPS, 1, dtype=torch.bool)
    success = flag.clone()
    success[-1] = True
    pixels = torch.arange(STEPS, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 64, 64).clone()
    return TensorDict(
        {"pixels": pixels, "is_init": flag, "success": success, "previous_action": torch.zeros(STEPS, 3)},
        [STEPS],
    )


def views():
    mask = torch.zeros(8, 1, 160, 256, dtype=torch.bool)
    for index in range(4):
        mask[index, 0, 60 : 80 + 10 * index, 100:140] = True
    frame = torch.randint(0, 255, (8, 3, 160, 256), dtype=torch.uint8)
    return TensorDict({"frame": frame, "goal_mask": mask, "step": torch.arange(8)[:, None]}, [8])


@pytest.fixture
def run(tmp_path):
    config = OmegaConf.create(
        {
            "system": "ls_imagine",
            "seed": 3,
            "run_dir": str(tmp_path / "run"),
            "env": {"name": "vizdoom/harvest_sand"},
            "training": {},
        }
    )
    run = RunDirectory.create(config)
    for step in range(100, 1000, 100):
        numbers = {
            "loss_reward": 1 / step,
            "success_rate": step / 1000,
            "return": step / 500,
            "jump_rate": 0.1,
        }
        run.log(step, "train", {**numbers, "collect/jump_rate": 0.05, "updates": step / 10})
    run.log(
        1000,
        "final",
        {"eval/success_rate": 0.5, "eval/return": 1.0, "eval/length": 70, "eval/episodes": 20},
        protocol={"env": "vizdoom/harvest_sand", "episodes": 20},
    )
    yield run
    run.close()


def test_every_section_is_drawn_and_nothing_is_fetched(run):
    evaluation = Evaluation([], [trajectory()], [views()])
    gather_evidence(run, Dreams(), evaluation, None, "cpu", Maps())
    page = write_report(run).read_text(encoding="utf-8")
    for heading in ("Learning", "Affordance maps", "Imagined and real", "Jumps", "Losses"):
        assert f"<h2>{heading}</h2>" in page
    for text in (
        "50 %",
        "20 evaluation episodes",
        "true object mask",
        'class="moment jump"',
        "Δ 2",
        "real steps",
        "Evaluation: 20 episodes of vizdoom/harvest_sand, mode of the policy",
    ):
        assert text in page, text
    assert page.count("data:image/") > 60
    bare = re.sub(r'"data:image/[^"]*"', "", page)
    assert not re.search(r"//[a-z]|<script|<link|@import|url\(", bare), (
        "the report asks for something outside"
    )


def test_spans_are_compared_with_the_steps_that_were_left(run):
    gather_evidence(run, Dreams(), Evaluation([], [trajectory()], [views()]), None, "cpu", Maps())
    with np.load(run.path / "evidence" / "spans.npz") as spans:
        assert spans["goal_real"].tolist() == [STEPS - 1 - t for t in range(0, STEPS, 7)]
        assert (spans["goal_predicted"] - spans["goal_real"]).tolist() == [1.0] * 6
    with np.load(run.path / "evidence" / "affordance.npz") as maps:
        assert maps["masks"].any((1, 2)).all(), "frames that show the goal are chosen"


def test_sections_without_data_are_left_out(run):
    gather_evidence(run, object(), Evaluation(), None)
    page = write_report(run).read_text(encoding="utf-8")
    assert "<h2>Learning</h2>" in page
    assert "<h2>Affordance maps</h2>" not in page and "<h2>Imagined and real</h2>" not in page


def test_a_run_that_has_just_begun_has_a_report(tmp_path):
    run = RunDirectory.create(OmegaConf.create({"system": "toy", "run_dir": str(tmp_path / "run")}))
    assert "<h1>toy on" in write_report(run).read_text(encoding="utf-8")


def test_charts_survive_odd_values():
    assert chart("one", [Series("a", [5], [0.0])])
    assert chart("flat", [Series("a", [1, 2], [3.0, 3.0])])
    assert chart("gaps", [Series("a", [1, 2, 3], [float("nan"), None, 1.0])])
    assert "</i>&lt;b&gt;" in chart("names", [Series("<b>", [1, 2], [1, 2]), Series("c", [1, 2], [2, 1])])


def test_overlays_follow_the_map():
    frame = np.full((4, 4, 3), 100, np.uint8)
    values = np.zeros((4, 4))
    values[0, 0] = 1.0
    shown = overlay(frame, values).astype(int)
    assert shown[0, 0].sum() > shown[3, 3].sum()
    assert heat(np.linspace(0, 1, 50)[None]).astype(int).sum(-1)[0, -1] > 600


class Everything:
    """Predicts every observation but the last number of ``speed`` as it is."""

    spaces = SimpleNamespace(vectors=("speed", "kind"), classes={"kind": 3})

    def open_loop(self, batch, context, *, vectors):
        kind = torch.nn.functional.one_hot(batch["kind"].long(), 3).float()
        images = {key: batch[key].float() for key in batch.keys() if batch[key].ndim == 5}
        return {**images, "speed": batch["speed"] * torch.tensor([1.0, -1.0]), "kind": kind}


def everything(channels):
    time = torch.arange(STEPS)
    frames = torch.rand(STEPS, channels, 16, 24)
    no = torch.zeros(STEPS, 1, dtype=torch.bool)
    speed = torch.stack([time / 10, (time % 7).float()], -1)
    observed = {"left": frames, "right": 9 * frames - 3, "speed": speed, "kind": time % 3}
    return TensorDict({**observed, "is_init": no, "previous_action": torch.zeros(STEPS, 3)}, [STEPS])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 12])
def test_any_key_and_any_number_of_channels_is_drawn(run, channels, capsys):
    gather_evidence(run, Everything(), Evaluation([], [everything(channels)]))
    page = write_report(run).read_text(encoding="utf-8")
    assert capsys.readouterr().err == ""
    left, right = page.index("<h3>left</h3>"), page.index("<h3>right</h3>")
    assert left < right < page.index("speed[1]") < page.index("kind</figcaption>")
    assert page.count("data:image/") == 2 * 2 * 3 * 30  # keys, real and imagined, windows, steps
    assert "left, right; curves of speed[0], speed[1], kind in 3 windows of 30 steps" in drawn(run.path)
    with np.load(run.path / "evidence" / "imagination.npz") as kept:
        assert kept["real_1"].shape == (3, 30, 16, 24, channels)
        assert (
            kept["real_1"].min() == 0 and kept["real_1"].max() == 255
        )  # what lies outside of 0 to 1 is scaled
        assert np.array_equal(kept["real_0"], kept["imagined_0"])
        real, imagined = kept["curves_real"], kept["curves_imagined"]
    assert np.array_equal(real[0], imagined[0]) and np.array_equal(real[1], -imagined[1])
    assert np.array_equal(real[2], imagined[2])  # of classes the likeliest


def test_pictures_keep_what_they_hold():
    frames = np.random.default_rng(0).integers(0, 255, (5, 4, 4, 3), np.uint8)
    sheet = tiled(np.concatenate(list(frames), -1))  # three in a row, two below
    assert sheet.shape == (10, 16, 3)
    assert np.array_equal(sheet[:4, 6:10], frames[1]) and np.array_equal(sheet[6:, 6:10], frames[4])
    assert (sheet[4:6] == 255).all() and (sheet[6:, 12:] == 255).all()
    assert np.array_equal(tiled(np.concatenate([*frames] * 9, -1))[:4, :4], frames[4])  # 16 of 45
    assert limits_of(torch.tensor([0.0, 255.0, torch.nan])) == (0.0, 255.0)
    assert channels_last(torch.full((2, 1, 1), torch.nan)).tolist() == [[[0, 0]]]
    assert channels_last(torch.ones(1, 1, 1, dtype=torch.bool)).item() == 255


def test_what_decodes_nothing_says_so(run):
    blind = SimpleNamespace(open_loop=lambda batch, context: {})
    gather_evidence(run, blind, Evaluation([], [trajectory()]))
    assert "decodes none" in write_report(run).read_text(encoding="utf-8") and "decodes none" in drawn(
        run.path
    )
    gather_evidence(run, Dreams(), Evaluation([], [trajectory()]))
    assert "decodes none" not in write_report(run).read_text(encoding="utf-8")
    assert drawn(run.path).startswith("pixels in 3 windows")


def test_older_evidence_is_drawn(run):
    frames = np.zeros((1, 8, 64, 64, 3), np.uint8)
    (run.path / "evidence").mkdir()
    np.savez(run.path / "evidence" / "imagination.npz", real=frames, imagined=frames, context=np.array(5))
    assert write_report(run).read_text(encoding="utf-8").count("data:image/") == 16


def test_drawing_ends_no_run(tmp_path, capsys):
    """What fails is one sentence, on the terminal and in the report; the result stands."""

    class Undrawn(ToySystem):
        def open_loop(self, batch, context):
            raise RuntimeError("shape mismatch\nin the decoder")

    parts = Parts(toy_env, lambda config, env, device: Undrawn(), make_memory, lambda *_: None)
    summary = train(toy_config(tmp_path / "run", report=True), parts=parts)
    assert summary.episodes == 3 and summary.learned
    sentence = "'Imagined and real' is not drawn: found RuntimeError: shape mismatch in the decoder; the run"
    assert sentence in " ".join(capsys.readouterr().err.split())
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "RuntimeError: shape mismatch in the decoder" in page and "<h2>Losses</h2>" in page
    assert summary.learned in html.unescape(page)


@pytest.mark.parametrize("name", ["imagination.npz", "affordance.npz", "spans.npz", "notes.json"])
def test_torn_evidence_leaves_the_other_sections(run, name, capsys):
    gather_evidence(run, Dreams(), Evaluation([], [trajectory()], [views()]), None, "cpu", Maps())
    path = run.path / "evidence" / name
    path.write_bytes(path.read_bytes()[:-300] if path.exists() else b"{")
    page = write_report(run).read_text(encoding="utf-8")
    assert capsys.readouterr().err.count("is not drawn: found") == 1
    headings = ("Learning", "Affordance maps", "Imagined and real", "Jumps", "Losses")
    assert all(f"<h2>{heading}</h2>" in page for heading in headings)


# --- what was learned ---------------------------------------------------------------------------------------


def told(path, played, before, *, success=False, updates=5, **config):
    """The sentence about a run of 2,000 steps with these returns, or successes."""
    whole = {"system": "toy", "run_dir": str(path), "env": {"name": "counting"}, "training": {}, **config}
    run = RunDirectory.create(OmegaConf.create(whole))

    def write(stage, values):
        for value in values:
            record = {"return": value, "length": 7, "success": bool(value) if success else None}
            run.episode(2000, stage, record)

    write("prefill", before)
    run.log(2000, "train", {"updates": updates})
    for stage, values in (("final", played), ("evaluate", played[:1])):  # `wmkit imagine` plays a few later
        write(stage, values)
        if values:
            numbers = {"return": sum(values) / len(values), "episodes": len(values)}
            numbers |= {"success_rate": numbers["return"]} if success else {}
            run.score(2000, stage, numbers, {"env": "counting", "episodes": len(values)})
    run.close()
    return learned(run)


SPREAD = [-30.0, -10.0, 0.0, 10.0, 30.0]
POOR, GOOD, NEAR = ([mean + x for x in SPREAD] for mean in (-1250.0, -183.0, -1240.0))


@pytest.mark.parametrize(
    ("played", "before", "options", "words"),
    [
        (GOOD, POOR, {}, ["After 2,000 steps the return is -183", "random actions make -1,250: it learned."]),
        (NEAR, POOR, {}, ["does not yet play better than chance: after 2,000", "random actions make"]),
        (POOR, GOOD, {}, ["It plays worse than chance"]),
        ([28.0] * 9, [28.0] * 9, {}, ["does not yet play better than chance"]),
        (GOOD, POOR[:3], {}, ["acting at random achieves was not measured (3 random episodes"]),
        (GOOD, [], {}, ["was not measured (0 random episodes"]),
        (GOOD[:2], POOR, {}, ["2 episodes are too few to show"]),
        ([], POOR, {}, ["not shown: no evaluation"]),
        (GOOD, POOR, {"updates": 0}, ["Nothing was learned"]),
        ([*GOOD, float("inf")], POOR, {}, ["not shown", "not finite"]),
        (GOOD, POOR, {"training": {"prefill_actions": "policy"}}, ["the untrained policy makes -1,250: it"]),
        (
            [1.0] * 33 + [0.0] * 17,
            [1.0] * 4 + [0.0] * 46,
            {"success": True},
            ["The policy succeeds in 66 % of 50 episodes; acting at random it succeeds in 8 %: it learned."],
        ),
        (
            [1.0] * 5 + [0.0] * 45,
            [1.0] * 4 + [0.0] * 46,
            {"success": True},
            ["It does not yet play better than chance: the policy succeeds in 10 % of 50"],
        ),
        ([1.0, 0.0] * 2, [0.0] * 4, {"success": True}, ["does not yet"]),
        ([1.0] * 9, [0.0] * 9, {"success": True}, ["100 % of 9 episodes", "it learned"]),
    ],
)
def test_what_was_learned_is_decided_by_numbers(tmp_path, played, before, options, words):
    sentence = told(tmp_path / "run", played, before, **options)
    assert all(word in sentence for word in words), sentence
    page = write_report(RunDirectory.open(tmp_path / "run")).read_text(encoding="utf-8")
    assert sentence in html.unescape(page[: page.index("<h1>")])  # before all else


def test_episodes_by_other_rules_are_no_measure(tmp_path):
    """In Atari a life lost ends an episode of training, and a game of evaluation goes on."""
    env = {"name": "atari/pong", "options": {"lives": "terminate"}, "evaluation": {"lives": "ignored"}}
    assert "other rules" in told(tmp_path / "run", GOOD, POOR, env=env)


def test_chance_is_seldom_taken_for_learning():
    """Of two equal groups few differ, of groups that lie apart most; the sizes are those of small presets."""
    draw = np.random.default_rng(0)
    for here, there in ((20, 4), (10, 25), (50, 166)):
        pairs = [(draw.normal(0, 1, here).tolist(), draw.normal(0, 3, there).tolist()) for _ in range(600)]
        assert sum(abs(d) > e for d, e in (_of_means(*pair) for pair in pairs)) < 0.08 * 600
        rates = [((draw.random(here) < 0.1) * 1.0, (draw.random(there) < 0.1) * 1.0) for _ in range(600)]
        assert sum(abs(d) > e for d, e in (_of_rates(*pair) for pair in rates)) < 0.08 * 600


def test_the_command_ends_with_what_was_learned(tmp_path, capsys):
    summary = train(toy_config(tmp_path / "run", final_episodes=5, prefill=64), parts=toy_parts())
    _print_summary(summary)
    wanted = "It does not yet play better than chance: after 160 steps the return is 28, where random actions"
    assert capsys.readouterr().out.splitlines()[-1].startswith(wanted)
