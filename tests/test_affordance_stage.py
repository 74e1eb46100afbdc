"""The stage before training: what it refuses before frames are collected, and a model that went missing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torchrl.data import Composite, UnboundedDiscrete

from wmkit.affordance import SmallUNet, load_affordance, save_affordance
from wmkit.affordance.unet import SHIPPED
from wmkit.errors import ConfigError, MissingWeightsError
from wmkit.systems import compose
from wmkit.training import affordance_frames, affordance_stage, fit_only
from wmkit.training.affordance_stage import prepare_affordance
from wmkit.training.checkpoints import CheckpointStore
from wmkit.training.progress import Stages
from wmkit.training.run import RunDirectory


def test_a_run_with_checkpoints_gets_no_other_model(tmp_path, monkeypatch):
    """Its policy learned from the maps of the one that is missing; a run without any goes on to make one."""
    monkeypatch.setattr(affordance_stage, "_make", lambda *_: "made")
    run, config = SimpleNamespace(path=tmp_path), compose("ls_imagine", ["affordance.model=null"])
    (tmp_path / "affordance" / "scorer").mkdir(parents=True)  # interrupted after the scorer
    assert prepare_affordance(config, run, None) == "made"
    CheckpointStore(tmp_path / "checkpoints").save(8, {})
    with pytest.raises(MissingWeightsError) as caught:
        prepare_affordance(config, run, None)
    model = tmp_path / "affordance" / "model"
    assert str(caught.value).startswith(
        f"affordance model {str(model)!r} is gone: found no config.json in it"
    )
    assert "affordance.model=FOLDER" in str(caught.value) and "\n" not in str(caught.value)
    unet = SmallUNet(widths=(8, 8), depths=(0, 1), image_size=(32, 32), text_dim=4, blur=(3, 3))
    for place, given in ((tmp_path / "kept", tmp_path / "kept"), (model, None)):
        save_affordance(place, unet, torch.ones(4), "a tree")
        config.affordance.model = None if given is None else str(given)
        assert prepare_affordance(config, run, None).prompt


def test_quick_begins_with_the_model_that_wmkit_brings(tmp_path, monkeypatch):
    """Copied into the run, so that a later release changes nothing in it; other tasks fit one."""
    monkeypatch.setattr(affordance_stage, "_make", lambda *_: "made")
    monkeypatch.setattr(affordance_stage, "LOOKED_AT", 8)
    config = compose("ls_imagine", [f"run_dir={tmp_path / 'run'}"])
    with RunDirectory.creating(config) as run:
        tools = prepare_affordance(config, run, Stages())
        assert next(iter(run.metrics("affordance")))["affordance/truth_visible"] >= 0
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*")) < 2_000_000
    saved = load_affordance(run.path / "affordance" / "model")
    frame = torch.randint(256, (1, 3, 160, 256), dtype=torch.uint8)
    maps = tools.model.predict(frame, tools.text)
    assert torch.equal(maps, saved.model.predict(frame, saved.text_features[0])) and maps.std() > 0
    for other in ("env=shear_sheep", "preset=smoke", "affordance=labels", "affordance.prompt='Cut a rose'"):
        run = SimpleNamespace(path=tmp_path / other)
        assert prepare_affordance(compose("ls_imagine", [other]), run, Stages()) == "made"


@pytest.mark.parametrize(
    ("affordance", "error", "words"),
    [
        ("embedded", MissingWeightsError, "an environment without object masks to train on"),
        ("labels", ConfigError, "scorer 'labels' reads object masks: found an environment without goal_mask"),
    ],
)
def test_an_environment_without_masks_is_refused_before_it_is_walked_in(
    tmp_path, monkeypatch, affordance, error, words
):
    frame = UnboundedDiscrete((3, 32, 32), dtype=torch.uint8)
    env = SimpleNamespace(observation_spec=Composite(frame=frame), is_closed=True)
    monkeypatch.setattr("wmkit.envs.make_env", lambda *_, **__: env)
    monkeypatch.setattr(affordance_frames, "_collect", lambda *_: pytest.fail("frames were collected"))
    with pytest.raises(error, match=words):
        fit_only(compose("ls_imagine", [f"affordance={affordance}", f"run_dir={tmp_path / 'run'}"]))
    assert not (tmp_path / "run").exists()


def test_a_label_that_was_made_is_read_and_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(affordance_frames, "CHUNK", 2)
    frames, asked = torch.randint(256, (5, 3, 4, 6), dtype=torch.uint8), []

    def explore(part):
        asked.append(len(part))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return part[:, 0] / 255

    with Stages().stage("label frames", 5) as bar:
        with pytest.raises(KeyboardInterrupt):
            affordance_frames.label(frames, explore, bar, tmp_path)
        labels = affordance_frames.label(frames, explore, bar, tmp_path)
        assert asked == [2, 2, 2, 1] and torch.equal(labels, frames[:, 0])
        affordance_frames.label(frames, explore, bar, tmp_path)
    assert len(asked) == 4


def test_another_task_prompt_or_scorer_shares_no_labels(tmp_path):
    given = ("", "affordance.prompt='a rose'", "affordance.scorer.path=there", "env=shear_sheep", "seed=1")
    configs = [compose("ls_imagine", [one] if one else []) for one in given]
    assert len({affordance_frames.place(tmp_path, config) for config in configs}) == len(given)
