"""Weights of the original codes by their own names: what is taken, and what is refused in one sentence.

What the loaded networks compute is held in ``tests/oracles``.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrl.data import Composite, OneHot, Unbounded, UnboundedDiscrete

import wmkit
from support import published
from wmkit.affordance import MineCLIP, SwinUNet
from wmkit.errors import CheckpointError, MissingWeightsError
from wmkit.systems import System, released_parameters
from wmkit.systems.convert import ls_imagine

PIXELS = {"pixels": UnboundedDiscrete((3, 64, 64), dtype=torch.uint8)}
VIEWS = PIXELS | {"affordance": UnboundedDiscrete((1, 64, 64), dtype=torch.uint8), "reward": Unbounded((1,))}
SMALL = (
    "size.deter=32",
    "size.hidden=24",
    "size.units=24",
    "size.groups=4",
    "size.classes=4",
    "size.depth=4",
)
BLOCKS = ("size.blocks=3", "size.heads=2", "size.layers=3")
CASES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "ls_imagine": (VIEWS, ("compat=released", "size.layers=5", "size.patch=1")),
    "storm": (PIXELS, BLOCKS),
    "transdreamer": (PIXELS, ("size.width=16", "size.blocks=2", "size.heads=2", "size.head=4")),
    "twm": (PIXELS, (*BLOCKS, "batch.length=18")),
    "dreamer_v3": (PIXELS, ()),
}


def build(name: str, *overrides: str, actions: int = 12) -> System:
    spec, usual = CASES[name]
    return wmkit.build(
        name,
        observation_spec=Composite(spec),
        action_spec=OneHot(actions),
        overrides=[*SMALL, *usual, *overrides],
    )


def test_ls_imagines_names_and_shapes_are_those_of_the_published_file() -> None:
    shapes = published.ls_imagine()
    assert len([name for name in shapes if name.startswith("_wm.")]) == 159
    with torch.device("meta"):
        system = wmkit.build(
            "ls_imagine",
            observation_spec=Composite(VIEWS),
            action_spec=OneHot(12),
            overrides=["size=paper"],
        )
    assert shapes == {
        name: tuple(part.shape)
        for slot in ls_imagine.slots(system).values()
        for name, part in zip(slot.names, slot.theirs(slot.tensor), strict=True)
    }


@pytest.mark.parametrize("name", CASES)
def test_what_a_system_gives_another_takes(name: str) -> None:
    teacher, pupil = build(name), build(name)
    with torch.no_grad():
        for x in teacher.parameters():
            x.normal_()
    weights = released_parameters(teacher)
    wmkit.load_released(pupil, {key: torch.from_numpy(x).double() for key, x in weights.items()})
    for key, x in teacher.named_parameters():
        torch.testing.assert_close(dict(pupil.named_parameters())[key], x, rtol=0, atol=0)


def test_transdreamers_slow_value_begins_as_its_value_where_it_is_left_out() -> None:
    teacher, pupil = build("transdreamer"), build("transdreamer")
    weights = released_parameters(teacher)
    wmkit.load_released(pupil, {key: x for key, x in weights.items() if not key.startswith("slow_")})
    loaded = released_parameters(pupil)
    for key, x in loaded.items():
        assert (x == weights[key.removeprefix("slow_")]).all()


def refused(system: System, weights: Any, *said: str) -> None:
    with pytest.raises(CheckpointError) as error:
        wmkit.load_released(system, weights)
    assert "\n" not in str(error.value)
    for part in said:
        assert part in str(error.value)


@pytest.mark.parametrize("name", [name for name in CASES if name != "dreamer_v3"])  # see test_jax_weights
def test_what_does_not_fit_is_named_and_nothing_is_loaded(name: str) -> None:
    system = build(name)
    good = released_parameters(build(name))
    before = [x.clone() for x in system.parameters()]
    one, other = min(good), max(good)
    refused(system, {key: x for key, x in good.items() if key != one}, f"missing {one}")
    refused(system, good | {"mystery": np.zeros(1)}, "unknown mystery")
    shape = list(good[other].shape)
    refused(system, good | {other: good[other][None]}, f"{other} of shape {[1, *shape]} instead of {shape}")
    refused(system, good | {other: good[other] * np.nan}, other, "NaN")
    refused(system, list(good), "are a list")
    refused(build(name, actions=3), good, "instead of [3")
    assert all(torch.equal(x, y) for x, y in zip(before, system.parameters(), strict=True))


def test_systems_without_known_weights_are_refused() -> None:
    spec = Composite(PIXELS)
    small = [one for one in SMALL if "classes" not in one]
    system = wmkit.build("dreamer_v1", observation_spec=spec, action_spec=OneHot(3), overrides=small)
    refused(system, {}, "system dreamer_v1 has no original whose weights are known", "ls_imagine")
    small = ["size=tiny", "backbone=gru"]
    swapped = wmkit.build("storm", observation_spec=spec, action_spec=OneHot(3), overrides=small)
    refused(swapped, {}, "has a parameter 'world_model.dynamics.backbone", "that the released STORM has not")


def latest(teacher: System, compiled: bool = True) -> dict[str, Any]:
    """What ``latest.pt`` of a system holds; the moments of a tensor are made of it."""
    weights = {name: torch.from_numpy(x) for name, x in released_parameters(teacher).items()}
    order = list(published.ls_imagine())  # of the file, where a critic may be as deep as here
    weights = {name: weights[name] for name in sorted(weights, key=order.index)}
    optimisers = {}
    for place, prefix in (
        ("_wm.{}_model_opt._opt", "_wm."),
        ("_task_behavior.{}_actor_opt._opt", "_task_behavior.actor."),
        ("_task_behavior.{}_value_opt._opt", "_task_behavior.value."),
    ):
        own = [x for name, x in weights.items() if name.startswith(prefix)]
        state = {
            i: {"step": torch.tensor(31.0), "exp_avg": 0.1 * x, "exp_avg_sq": x**2} for i, x in enumerate(own)
        }
        groups = [{"lr": 0.5, "betas": (0.9, 0.999), "params": list(range(len(own)))}]
        optimisers[place.format("_orig_mod." * compiled)] = {"state": state, "param_groups": groups}
    return {"agent_state_dict": published.copies(weights, compiled), "optims_state_dict": optimisers}


def random(name: str, *overrides: str) -> System:
    system = build(name, *overrides)
    with torch.no_grad():
        for x in system.parameters():
            x.normal_()
    return system


@pytest.mark.parametrize("compiled", [True, False])
def test_latest_pt_is_read_whole(tmp_path: Path, compiled: bool) -> None:
    teacher, whole = (one := random("ls_imagine")), latest(one, compiled)
    assert len(whole["agent_state_dict"]) == 545
    torch.save(whole, tmp_path / "latest.pt")
    pupil = build("ls_imagine", "controller.return_norm={_target_: torchrl.modules.PercentileValueNorm}")
    wmkit.load_ls_imagine(pupil, tmp_path / "latest.pt", optimizers=True)
    theirs, rate = dict(teacher.named_parameters()), 3e-5
    for learner in pupil.schedule.learners.values():
        names = {id(x): name for name, x in pupil.named_parameters()}
        for x in learner.parameters:
            state = learner.optimizer.state[x]
            assert torch.equal(x, theirs[names[id(x)]]) and state["step"] == 31
            torch.testing.assert_close(state["exp_avg"], 0.1 * x.detach())
            torch.testing.assert_close(state["exp_avg_sq"], x.detach() ** 2)
    assert pupil.schedule.learners["actor"].optimizer.param_groups[0]["lr"] == rate  # the page's
    assert torch.equal(pupil.schedule.slow_critic.out.bias, teacher.schedule.slow_critic.out.bias)
    norm = pupil.controller.return_norm
    assert (norm.low.item(), norm.high.item()) == (-0.5, 1.5)
    pupil.update(pupil.example_batch())  # goes on from there
    other = build("ls_imagine")
    wmkit.load_released(other, tmp_path / "latest.pt")
    assert torch.equal(other.critic.out.weight, teacher.critic.out.weight)


def test_what_a_latest_pt_lacks_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    system, whole = build("ls_imagine"), latest(random("ls_imagine"))
    before = [x.clone() for x in (*system.parameters(), *system.buffers())]
    agent, optimisers = whole["agent_state_dict"], whole["optims_state_dict"]
    changed = dict(agent)
    changed["_expl_behavior._orig_mod._world_model.dynamics.W"] = changed["_wm._orig_mod.dynamics.W"] + 1
    first = next(iter(optimisers))
    short = {**optimisers, first: {"state": {0: optimisers[first]["state"][1]}}}
    file = tmp_path / "latest.pt"
    for found, words in (
        ({**whole, "agent_state_dict": changed}, "two values for _wm.dynamics.W"),
        ({"agent_state_dict": agent}, "no optims_state_dict"),
        ({**whole, "optims_state_dict": {}}, "no moments for learner 'world_model'"),
        ({**whole, "optims_state_dict": short}, "optimizers=False"),
        ({**whole, "agent_state_dict": {}}, "missing .* and [0-9]+ more"),
        ({"agent_state_dict": published.light(published.swin_unet())}, "no optims_state_dict"),
    ):
        torch.save(found, file)
        with pytest.raises(CheckpointError, match=words) as caught:
            wmkit.load_ls_imagine(system, file, optimizers=True)
        assert "\n" not in str(caught.value)
    refused(system, published.light(published.swin_unet()), "it seems to be LS-Imagine's U-Net")
    refused(build("ls_imagine", "critic.layers=5"), whole, "its critic is deeper than the published one")
    refused(build("ls_imagine", actions=3), whole, "only the number of actions differs")
    turned = build("ls_imagine", "observations.images=[pixels,affordance]")
    refused(turned, whole, "pixels, affordance", "map's channel first")
    data = io.BytesIO()
    torch.save(whole, data)
    mark = tmp_path / "mark"
    for content in (data.getvalue()[:-100], pickle.dumps(Touch(mark)), b""):
        file.write_bytes(content)
        refused(system, file, "cannot be read")
    with pytest.raises(MissingWeightsError, match="nowhere"):
        wmkit.load_released(system, tmp_path / "nowhere.pt")
    assert not mark.exists()
    assert all(
        torch.equal(x, y) for x, y in zip(before, (*system.parameters(), *system.buffers()), strict=True)
    )


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_all_three_files_of_ls_imagine_go_one_way(tmp_path: Path) -> None:
    sizes = dict(width=64, layers=1, dim=64, text_width=64, text_layers=1, vocabulary=9, context=5, frames=16)
    model = MineCLIP(**sizes, heads=1, text_heads=1, time_layers=1, time_heads=1, resolution=(32, 80))
    shapes = published.mineclip(**sizes, tokens=11, time_layers=1, time_width=64)
    weights = published.shared(published.light(shapes))
    torch.save({"state_dict": weights}, tmp_path / "mineclip_attn.pth")
    wmkit.load_released(model, tmp_path / "mineclip_attn.pth")
    assert torch.equal(model.vision.token, weights["model.image_encoder.cls_token"])
    unet = SwinUNet("constant_query")
    weights = {k: x for k, x in published.light(published.swin_unet()).items() if "index" not in k}
    torch.save(weights, tmp_path / "swin_unet_checkpoint.pth")
    wmkit.load_released(unet, tmp_path / "swin_unet_checkpoint.pth")
    assert torch.equal(unet.output.weight, weights["swin_unet.output.weight"])
    with pytest.raises(CheckpointError, match="it seems to be MineCLIP"):
        wmkit.load_released(unet, tmp_path / "mineclip_attn.pth")
    with pytest.raises(CheckpointError, match="a Linear has no original"):
        wmkit.load_released(torch.nn.Linear(1, 1), {})


def test_storms_two_files_and_statistics() -> None:
    teacher, pupil = build("storm"), build("storm")
    with torch.no_grad():
        for _, x in [one for one in teacher.named_buffers() if one[0].endswith("running_mean")]:
            x.normal_()
    weights = released_parameters(teacher)
    agent = ("actor", "critic", "slow_critic")
    wmkit.load_released(
        pupil, {("ag." if name.startswith(agent) else "wm.") + name: x for name, x in weights.items()}
    )
    assert all(
        torch.equal(x, y)
        for (_, x), (_, y) in zip(teacher.named_buffers(), pupil.named_buffers(), strict=True)
    )
    learnt = {name: x for name, x in weights.items() if "running" not in name and "num_batches" not in name}
    wmkit.load_released(build("storm"), learnt)
    mean = next(name for name in weights if name.endswith("running_mean"))
    refused(pupil, learnt | {mean: weights[mean]}, "missing encoder.backbone.1.running_var")
