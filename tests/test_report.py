"""The report: every section with data, none without, and nothing that needs a network."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from wmkit.training.evaluate import Evaluation
from wmkit.training.report import gather_evidence, write_report
from wmkit.training.report.charts import Series, chart
from wmkit.training.report.pictures import heat, overlay
from wmkit.training.run import RunDirectory

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
