"""Every backbone in every system: it acts, learns and imagines, and forgets at a reset only."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from omegaconf import ListConfig
from tensordict import TensorDict
from torch.utils._pytree import tree_leaves
from torchrl.data import Composite, OneHot, Unbounded, UnboundedDiscrete
from torchrl.envs import TransformedEnv
from torchrl.envs.transforms import InitTracker

from support import storm, twm
from wmkit import backbones
from wmkit.data import to_sequence
from wmkit.dynamics import RSSM, rollout
from wmkit.envs.counting import CountingEnv
from wmkit.registry import full_name
from wmkit.systems import System, build, compose

A = 3
BACKBONES = ["block_gru", "gpt", "gru", "ln_gru", "ln_gru_bias", "lstm", "s5", "transformer_xl"]
TINY = ["size.deter=16", "size.groups=2", "size.hidden=8", "size.units=8"]
UNREAD = {"dreamer_v1": ("layers", "classes"), "dreamer_v2": ("layers",), "dreamer_v3": ("layers",)}
SMALL_BATCH = ["preset=paper", "batch.size=2", "batch.length=4", "controller.horizon=3"]


def vectors() -> Composite:
    return Composite(observation=Unbounded((2,)))


def small(system: str, backbone: str, *overrides: str) -> System:
    torch.manual_seed(0)
    spec = vectors()
    if system == "ls_imagine":
        pixels = UnboundedDiscrete((3, 64, 64), dtype=torch.uint8)
        affordance = UnboundedDiscrete((1, 64, 64), dtype=torch.uint8)
        spec = Composite(pixels=pixels, affordance=affordance)
        overrides = ("size=tiny", "size.depth=2", *overrides)
    sizes = {"classes": 3, "layers": 1}
    more = [f"size.{name}={n}" for name, n in sizes.items() if name not in UNREAD.get(system, ())]
    overrides = (f"backbone={backbone}", *TINY, *more, *SMALL_BATCH, *overrides)
    return build(system, observation_spec=spec, action_spec=OneHot(A), overrides=overrides)


def learns_and_imagines(system: System) -> None:
    batch = system.example_batch()
    dynamics = system.world_model.dynamics
    backbone = getattr(dynamics, "short", dynamics).backbone
    metrics = system.update(batch)
    assert all(bool(value.isfinite().all()) for value in metrics.exclude("replay_context").values())
    assert all(p.grad.abs().sum() > 0 for p in backbone.parameters())
    start = metrics["replay_context"].flatten()
    rollout = system.imagine(start, 2)
    assert rollout.batch_size == (len(start), 2) and bool(rollout["next", "reward"].isfinite().all())
    assert all(bool(x.isfinite().all()) for x in system.open_loop(batch, 2).values())


@pytest.mark.parametrize("backbone", ["transformer_xl", "gpt", "s5"])
def test_nothing_is_dropped_out_while_acting(backbone: str) -> None:
    """Acting is the same in training mode, which it leaves as it was; what is learned from is thinned out."""
    system = small("dreamer_v3", backbone, "+backbone.dropout=0.5")
    env = TransformedEnv(CountingEnv(length=5, num_actions=A), InitTracker())
    env.append_transform(system.policy.make_tensordict_primer())
    observed = env.reset().set("observation", torch.ones(2)).set("is_init", torch.zeros(1, dtype=torch.bool))
    batch, found = system.example_batch(), {}
    for training in (True, False):
        system.train(training)
        torch.manual_seed(1)
        acted = system.policy(observed.clone())
        modes = {module.training for module in system.modules()}
        with torch.no_grad():
            learned = system.world_model.observe(system.fill(batch)).latent.belief
        assert modes == {training}
        found[training] = (acted["belief"], acted["state"], learned)
    (belief, state, learned), (other, same, calm) = found[True], found[False]
    assert torch.equal(belief, other) and torch.equal(state, same) and bool(belief.any())
    assert not torch.allclose(learned, calm)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("system", ["dreamer_v3", "dreamer_v3_2023"])
def test_learns_and_imagines(system: str, backbone: str) -> None:
    learns_and_imagines(small(system, backbone))


@pytest.mark.parametrize("system", ["dreamer_v1", "dreamer_v2"])
def test_older_dreamers_too(system: str) -> None:
    learns_and_imagines(small(system, "transformer_xl"))


@pytest.mark.parametrize("backbone", ["gpt", "transformer_xl"])
@pytest.mark.parametrize(("system", "tokens"), [("twm", 50), ("storm", 64)])
def test_a_transformer_sees_the_training_window_of_tokens(system: str, tokens: int, backbone: str) -> None:
    page = compose(system, [f"backbone={backbone}", "preset=full"]).backbone
    windows = page.window if isinstance(page.window, ListConfig) else [page.window]  # TWM's, by kind of token
    assert page["_target_"] == full_name("backbone", backbone) and max(windows) >= tokens


@pytest.mark.parametrize("backbone", ["gru", "s5"])
@pytest.mark.parametrize("system", [twm, storm])
def test_token_systems_learn_without_a_transformer(system: ModuleType, backbone: str) -> None:
    system = system.build(f"backbone={backbone}")
    metrics = system.update(system.example_batch())
    assert all(bool(value.isfinite().all()) for value in metrics.values())
    assert all(p.grad.abs().sum() > 0 for p in system.world_model.dynamics.backbone.parameters())


@pytest.mark.parametrize("backbone", ["lstm", "s5", "transformer_xl"])
def test_jumps_with_any_backbone(backbone: str) -> None:
    """LS-Imagine as released, whose second roll-out sets off from the middle of the first."""
    learns_and_imagines(small("ls_imagine", backbone, "compat=released", "controller.hooks.gate.threshold=0"))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_acting_remembers_what_training_does(backbone: str) -> None:
    """Step by step through the policy's keys, the beliefs of a whole window; also over a reset."""
    system = small("dreamer_v3_2023", backbone)
    dynamics = system.world_model.dynamics
    torch.manual_seed(2)
    observation, is_init = torch.randn(2, 6, 2), torch.zeros(2, 6, 1, dtype=torch.bool)
    is_init[:, 0], is_init[1, 3] = True, True
    # States are sampled: those of the policy are put in the window's place.
    carried = {key: torch.zeros(2, *dynamics.pack_shapes[key]) for key in system.policy.latent_keys}
    previous, states, beliefs, actions = torch.zeros(2, A), [], [], []
    for t in range(6):
        step = {"observation": observation[:, t], "is_init": is_init[:, t], "previous_action": previous}
        out = system.policy(TensorDict({**step, **carried}, [2]))
        carried = {key: out[key] for key in carried}
        actions.append(previous)
        previous = out["next", "previous_action"]
        states.append(out["state"])
        beliefs.append(out["belief"])
    embed = system.world_model.encoder.encode({"observation": observation})
    latent = dynamics.initial(2)
    for t in range(6):
        record = {"previous_action": actions[t], "is_init": is_init[:, t, 0]}
        latent = dynamics.filter(latent, embed[:, t], record)
        torch.testing.assert_close(latent.belief, beliefs[t])
        latent = latent._replace(state=states[t])


def test_collected_steps_carry_memory_that_replay_does_not_keep() -> None:
    spec = CountingEnv().observation_spec
    overrides = ["backbone=transformer_xl", *TINY, "size.classes=3", "size.layers=1", *SMALL_BATCH]
    env = CountingEnv()
    system = build("dreamer_v3_2023", observation_spec=spec, action_spec=env.action_spec, overrides=overrides)
    world = TransformedEnv(env, InitTracker())
    world.append_transform(system.policy.make_tensordict_primer())
    steps = world.rollout(9, system.policy, break_when_any_done=False)
    ages = steps["carry"][:, -system.world_model.dynamics.belief_dim - 1]
    assert ages.tolist() == [1, 2, 3, 4, 5, 6, 7, 1, 2]  # an episode has seven steps
    assert "carry" not in to_sequence(steps)[0].keys()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_rollout_goes_on_from_any_step_of_a_window(backbone: str) -> None:
    """A step from the latents of a window, all at once, is a step from each of them by itself."""
    torch.manual_seed(0)
    make = lambda **dims: backbones.build(backbone, **dims)  # noqa: E731
    rssm = RSSM(A, 5, backbone=make, deter=16, groups=2, classes=3, hidden=8)
    is_init = torch.rand(2, 6) < 0.3
    embed, action = torch.randn(2, 6, 5), torch.randn(2, 6, A)
    record = {"previous_action": action, "is_init": is_init}
    window = rssm.observe(embed, record).latent
    assert all(leaf.shape[:2] == (2, 6) for leaf in tree_leaves(window.carry) if leaf is not None)
    starts = window.map(lambda x: x.flatten(0, 1)).detach()
    noise, push = torch.rand(12, 2, 1), torch.randn(12, A)
    together = rssm.step(starts, push, noise=noise)
    latent = rssm.initial(2)
    for t in range(6):
        latent = rssm.filter(latent, embed[:, t], {key: value[:, t] for key, value in record.items()})
        latent = latent._replace(state=window.state[:, t], classes=window.classes[:, t])
        rows = torch.tensor([t, 6 + t])
        alone = rssm.step(latent, push[rows], noise=noise[rows])
        torch.testing.assert_close(alone.belief, together.belief[rows])
        again = rssm.unpack(rssm.pack(latent))
        torch.testing.assert_close(rssm.step(again, push[rows], noise=noise[rows]).belief, alone.belief)


def test_a_rollout_keeps_no_memory_but_its_last() -> None:
    system = small("dreamer_v3_2023", "transformer_xl")
    start = system.world_model.dynamics.initial(4)
    found = rollout(system.world_model, start, system.actor, 3)
    assert found.latent.carry is None and found.latent.belief.shape == (4, 4, 16)
    assert tree_leaves(found.last.carry)
